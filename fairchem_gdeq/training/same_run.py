"""A run's folder holds one run: another model, data set or setting in it is refused, not mixed in."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fairchem_gdeq.training.contents import contents_of
from fairchem_gdeq.training.in_use import whole_file
from fairchem_gdeq.training.ranks import rank

KEPT = "gdeq_settings.json"  # beside the checkpoints: what they were trained with
# What may differ without a word: it says how a run is looked at, where it runs, what is told of it, and
# how much memory it takes for the same gradient.
FREE = (
    *("runner.mode", "runner.split", "runner.test", "runner.checkpoint", "runner.baselines*"),
    *(
        "runner.reference*",
        "runner.metrics*",
        "runner.diagnose*",
        "runner.audit*",
        "runner.held_frames*",
    ),
    *("runner.trust_files", "runner.callbacks*", "runner.test_dataloader*"),
    *("runner.train_eval_unit.job_config*", "runner.train_eval_unit.print_every"),
    *("runner.train_eval_unit.compiled", "*.guidance_memory", "*.hint", "*.trust_files"),
    *("*num_workers", "*.most_diverged", "runner.eval_dataloader*max_atoms"),
)
# What is told and goes on: a run is made longer, or has other ranks.
EPOCHS, RANKS = ("runner.max_epochs", "optim.max_epochs"), "job.ranks"
SCHEDULE = "runner.train_eval_unit.cosine_lr_scheduler_fn.epochs"
TOLD = (*EPOCHS, SCHEDULE, RANKS)
# What a table of base and tuned model is of.
COMPARED = (
    *("runner.train_eval_unit.model.*", "runner.train_eval_unit.tasks.*"),
    *("runner.train_eval_unit.is2rs.alpha", "runner.train_eval_unit.is2rs.cap"),
    "runner.train_eval_unit.is2rs.descent.*",
)
SHOWN = 12
NAMED = 6  # in the last line, after those that are shown
PACKAGE = "package"  # the version of this one: another has other keys
PROCESSES = "processes"  # of fairchem 1, which would be elsewhere in its epoch with others
NOTHING = "nothing"  # where there is no such key
CONTENTS = ", what is in it"  # after the key of a path, where there is something


def settings_of(config: DictConfig) -> str:
    """What decides a run's numbers, as JSON: settings by their dotted keys.

    Args:
        config: of a run of ours, as Hydra composed it.

    Raises:
        OmegaConfBaseException: something in it cannot be resolved.
    """
    stored: Any = OmegaConf.to_container(config, resolve=True)
    found = dict(flat("runner", stored["runner"]))
    job = stored.get("job", {})
    found |= {f"job.{key}": job.get(key) for key in ("seed", "deterministic")}
    scheduler = job.get("scheduler", {})
    found[PACKAGE] = version("fairchem-gdeq")
    found |= {f"{key}{CONTENTS}": told for key, told in contents_of(that_count(FREE, found))}
    found[RANKS] = scheduler.get("ranks_per_node", 1) * scheduler.get("num_nodes", 1)
    return without(FREE, found)


def without(free: Iterable[str], settings: Mapping[str, Any]) -> str:
    """Settings by their keys as JSON, without those that may differ (patterns)."""
    return json.dumps(that_count(free, settings), indent=1, sort_keys=True, default=str)


def that_count(free: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that may differ (patterns)."""
    return {k: v for k, v in settings.items() if not any(fnmatchcase(k, f) for f in free)}


def require_same_run(
    settings: str, checkpoints: Path, another: str = "job.timestamp_id=NAME"
) -> None:
    """Refuse to go on with other settings than those of the checkpoints in a folder.

    Args:
        settings: of what is started.
        checkpoints: the run's folder of checkpoints, where the settings that they are of are kept.
        another: the option that chooses another folder.

    Raises:
        ValueError: names every difference that would be mixed in, and what to do.
    """
    # As fairchem 2, and fairchem 1, tell those that can be gone on from.
    if not any(checkpoints.glob("*/.metadata")) and not (checkpoints / "checkpoint.pt").is_file():
        return
    found = differences(settings, checkpoints)
    mixed = [
        k for k, (there, now) in found.items() if k not in TOLD or (k in EPOCHS and now < there)
    ]
    if mixed:
        more = f"\n  and {len(mixed) - SHOWN} more" if len(mixed) > SHOWN else ""
        raise ValueError(
            f"{checkpoints.parent} holds a run with other settings, and going on would mix the two:\n  "
            + "\n  ".join(_said(found, mixed[:SHOWN]))
            + more
            + f"\n{_named(mixed)}: expected the settings of the run there. Choose another folder with "
            f"{another}, take the old settings, or remove that folder to begin anew. If it is the same "
            f"run, such as after moving its data, remove {checkpoints / KEPT}"
        )
    # The schedule has the run's epochs too, and once is enough.
    again = {SCHEDULE} if found.get(SCHEDULE) == found.get(EPOCHS[0]) else set()
    for said in _said(found, [key for key in found if key not in again]) if rank() == 0 else ():
        logging.warning(f"the run goes on with a difference: {said}")


def require_nothing_done(
    results: Path, checkpoints: Path, another: str = "job.timestamp_id=NAME"
) -> None:
    """Refuse to begin a run where one has come to its end, and its checkpoints are gone since.

    Args:
        results, checkpoints: the run's folders.
        another: as ``require_same_run``.

    Raises:
        ValueError: its table is there; says what to do.
    """
    for table in sorted(results.glob("*.json")):
        raise ValueError(
            f"{table} is of a training that has ended, and {checkpoints} has no checkpoint to go on "
            "from: expected a new folder, or the model of that training would be lost. Choose another "
            f"with {another}, or remove {results} to begin anew"
        )


def _named(keys: list[str]) -> str:
    """The first keys of several, for a last line."""
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def warn_of_another(settings: str, checkpoints: Path) -> None:
    """Say where the run's own model is looked at beside another base, or relaxed in another way."""
    found = differences(settings, checkpoints)
    if mixed := [key for key in found if any(fnmatchcase(key, f) for f in COMPARED)]:
        logging.warning(
            f"the tuned model of {checkpoints.parent} was trained with other settings than base and "
            "tuned model are compared with now: " + "; ".join(_said(found, mixed))
        )


def keep_settings(settings: str, checkpoints: Path) -> None:
    """Keep what checkpoints are of beside them; one process alone may do so."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    with whole_file(checkpoints / KEPT) as part:
        part.write_text(settings)


def differences(settings: str, checkpoints: Path) -> dict[str, tuple[Any, Any]]:
    """What differs from the settings of the checkpoints: what it was and what it is, by its key.

    Nothing where none are kept beside them. Of another version of this package, only keys that both have
    are compared. One of the same that has a key alone has another part in the place of one, or one more.

    Raises:
        ValueError: what is kept cannot be read.
    """
    kept = checkpoints / KEPT
    if not kept.is_file():
        return {}
    now = json.loads(settings)
    try:
        before = json.loads(kept.read_text())
        if not isinstance(before, dict) or not before.keys() & now.keys():
            raise ValueError("it has none of their keys")
    except ValueError as error:
        raise ValueError(
            f"{kept}: expected the settings of the run's checkpoints as JSON, found what cannot be read "
            f"({error}). Remove it if this is the same run; else choose another folder with "
            "job.timestamp_id=NAME"
        ) from error
    alike = before.pop(PACKAGE, None) == now.pop(PACKAGE, None)
    keys = before.keys() | now.keys() if alike else before.keys() & now.keys()
    pairs = {key: (before.get(key, NOTHING), now.get(key, NOTHING)) for key in sorted(keys)}
    return {
        key: pair
        for key, pair in pairs.items()
        if pair[0] != pair[1] and not (key.endswith((CONTENTS, PROCESSES)) and _unknown(pair))
    }


def _unknown(pair: tuple[Any, Any]) -> bool:
    """Whether a pair cannot be compared: one is missing, or an older version kept a file's size."""
    return NOTHING in pair or str(pair[0]).endswith(" bytes")


def _said(found: Mapping[str, tuple[Any, Any]], keys: Iterable[str]) -> list[str]:
    """Differences in words."""
    return [f"{key}: {found[key][0]!r} there, {found[key][1]!r} now" for key in keys]


def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values of nested sections by their dotted keys."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from flat(f"{prefix}.{key}" if prefix else key, each)
    else:
        yield prefix, value
