"""A run's folder holds one run: another model, data set or setting in it is refused, not mixed in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

KEPT = "gdeq_config.yaml"  # beside the checkpoints: the config that they were trained with
# What may differ without a word: it says how a run is looked at, where it runs, and what is told of it.
FREE = (
    *("runner.mode", "runner.split", "runner.test", "runner.checkpoint", "runner.baselines*"),
    *("runner.reference*", "runner.metrics*", "runner.diagnose*", "runner.held_frames*"),
    *("runner.trust_files", "runner.callbacks*", "runner.test_dataloader*"),
    *("runner.train_eval_unit.job_config*", "runner.train_eval_unit.print_every"),
    *(
        "*.hint",
        "*.trust_files",
        "*num_workers",
        "*.eval_max_atoms",
        "runner.eval_dataloader*max_atoms",
    ),
)
# What makes a run longer: the schedule is that of the new length from then on.
LONGER = ("runner.max_epochs", "runner.train_eval_unit.cosine_lr_scheduler_fn.epochs")
# What a table of base and tuned model is of.
COMPARED = (
    *("runner.train_eval_unit.model.*", "runner.train_eval_unit.tasks.*"),
    *("runner.train_eval_unit.is2rs.alpha", "runner.train_eval_unit.is2rs.cap"),
)
SHOWN = 12


def require_same_run(config: Path, checkpoints: Path) -> None:
    """Refuse to go on with another config than that of the checkpoints in a folder.

    Args:
        config: what is started, resolved, as YAML.
        checkpoints: the run's folder of checkpoints, where the config that they are of is kept.

    Raises:
        ValueError: names every difference that would be mixed in, and what to do.
    """
    if not any(path.is_dir() for path in checkpoints.glob("*")):
        return
    different = differences(config, checkpoints)
    mixed = [said for key, said in different.items() if key not in LONGER]
    if mixed:
        more = f"\n  and {len(mixed) - SHOWN} more" if len(mixed) > SHOWN else ""
        raise ValueError(
            f"{checkpoints.parent} holds a run with other settings, and going on would mix the two:\n  "
            + "\n  ".join(mixed[:SHOWN])
            + more
            + "\nChoose another folder with job.timestamp_id=NAME, take the old settings, or remove that "
            "folder to begin anew"
        )
    for said in different.values():
        logging.info(f"the run is made longer: {said}")


def warn_of_another(config: Path, checkpoints: Path) -> None:
    """Say where the run's own model is looked at beside another base, or relaxed in another way."""
    found = differences(config, checkpoints)
    mixed = [said for key, said in found.items() if any(fnmatchcase(key, f) for f in COMPARED)]
    if mixed:
        logging.warning(
            f"the tuned model of {checkpoints.parent} was trained with other settings than base and "
            "tuned model are compared with now: " + "; ".join(mixed)
        )


def differences(config: Path, checkpoints: Path) -> dict[str, str]:
    """What differs between a config and that of the checkpoints, in words by its key.

    Nothing where no config is kept beside them.
    """
    kept = checkpoints / KEPT
    if not kept.is_file():
        return {}
    before, now = (_settings(path) for path in (kept, config))
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return {k: f"{k}: {_said(before, k)} there, {_said(now, k)} now" for k in keys}


def keep_config(config: Path, checkpoints: Path) -> None:
    """Keep the config that checkpoints are of beside them; one process alone may do so."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    part = checkpoints / f"{KEPT}.part"
    part.write_bytes(config.read_bytes())
    part.replace(checkpoints / KEPT)


def _settings(path: Path) -> dict[str, Any]:
    """What decides a run's numbers, flat: settings of the runner by their dotted keys, and the seed."""
    stored: Any = OmegaConf.to_container(OmegaConf.load(path))
    found = dict(_flat("runner", stored["runner"]))
    job = stored.get("job", {})
    found |= {f"job.{key}": job.get(key) for key in ("seed", "deterministic")}
    scheduler = job.get("scheduler", {})
    found |= {f"job.scheduler.{k}": scheduler.get(k) for k in ("ranks_per_node", "num_nodes")}
    return {key: v for key, v in found.items() if not any(fnmatchcase(key, f) for f in FREE)}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{prefix}.{key}", each)
    else:
        yield prefix, value


def _said(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not"
