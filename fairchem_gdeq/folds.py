"""Is a recipe better than the base? By k folds, where there are too few structures to hold many out.

python -m fairchem_gdeq.folds CONFIG K [OVERRIDE ...]

Training and validation structures together are put into K folds. The recipe trains K times, each time on
all folds but one, and the base and what it became relax the fold that is left. So every structure is
judged once, by a model that has not seen it, and the comparison is of all of them: an interval over 60
structures where a split would have had 12. The last epoch is compared, whatever its validation says,
so nothing is chosen by what is judged.

K runs take K times as long as one. They are ordinary runs in the config's run folder, ``NAME_fold1of5``
and so on, and the same command goes on from where it stopped. ``NAME_folds.json`` beside them has the
result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fairchem.core._cli import get_hydra_config_from_yaml
from omegaconf import DictConfig

from fairchem_gdeq.data.folds import Fold
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import Comparison, End, compare
from fairchem_gdeq.evaluation.scoring import BASE, TUNED

SPLITS = {"train": False, "val": True, "test": True}  # whether it is the fold that is held out


def run_of(config: DictConfig, fold: Fold) -> tuple[Path, list[str]]:
    """The folder of one run, and the overrides that make it of the config.

    Raises:
        ValueError: frames would have to be held out too.
    """
    frames = config.runner.train_eval_unit.forces.src
    if frames not in (None, "none", "base"):
        raise ValueError(
            f"forces.src={frames}: frames of structures that are held out would be trained "
            "on. Folds work with forces.src=base or forces.src=none"
        )
    name = f"{config.job.timestamp_id}_fold{fold.number + 1}of{fold.of}"
    overrides = ["keep=last", f"job.timestamp_id={name}"]
    for split, held in SPLITS.items():
        settings = f"{{of:{fold.of},number:{fold.number},held:{str(held).lower()}}}"
        place = f"{split}_loader.dataset.dataset_configs.is2rs.splits.{split}"
        overrides += [f"{place}.src=[${{paths.train}},${{paths.val}}]", f"+{place}.fold={settings}"]
    return Path(config.job.run_dir) / name, overrides


def ends_of(run: Path) -> tuple[list[End], list[End]]:
    """Where the base and the tuned model of a run ended, on the fold that was held out.

    Raises:
        ValueError: the run has no results.
    """
    path = run / "results" / "test.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the run has not ended, see its log above")
    records = json.loads(path.read_text())["records"]
    before, after = (
        [End(each["row"], each["delta_q"], each["diverged"]) for each in records[name]]
        for name in (BASE, TUNED)
    )
    return before, after


def judge(runs: Sequence[Path], basin: Basin) -> Comparison:
    """Compare base and tuned over the folds of all runs."""
    before: list[End] = []
    after: list[End] = []
    for run in runs:
        old, new = ends_of(run)
        before += old
        after += new
    return compare(before, after, basin)


def advice(found: Comparison, config: str, overrides: Sequence[str]) -> str:
    """What the comparison means for the model that will be used."""
    command = " ".join(["fairchem", "-c", config, "--mode train", *overrides, "keep=last"])
    if found.verdict == "better":
        return f"The recipe is better on structures that it has not seen. Train with it:\n{command}"
    if found.verdict == "worse":
        return "The recipe makes its base worse. Use the base, or another recipe."
    return "It cannot be told apart from its base. Use the base, or more structures."


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; else ends with a message."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="as for fairchem -c")
    parser.add_argument("folds", metavar="K", type=int)
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="of keys of the config")
    options = parser.parse_args(arguments)
    config = get_hydra_config_from_yaml(options.config, options.overrides)
    runs = []
    fairchem = str(Path(sys.executable).with_name("fairchem"))
    try:
        for number in range(options.folds):
            run, more = run_of(config, Fold(options.folds, number, held=True))
            runs.append(run)
            if (run / "results" / "test.json").is_file():
                continue
            command = [fairchem, "-c", options.config, "--mode", "train", *options.overrides, *more]
            if status := subprocess.run(command, check=False).returncode:
                raise ValueError(f"{run} ended with status {status}; the same command goes on")
        basin = config.runner.train_eval_unit.is2rs.basin
        found = judge(runs, Basin(basin.delta_q, basin.displacement))
    except (OSError, ValueError) as error:
        raise SystemExit(f"folds: {error}") from error
    path = runs[0].with_name(f"{config.job.timestamp_id}_folds.json")
    path.write_text(json.dumps({"runs": [r.name for r in runs], **found.state()}, indent=1) + "\n")
    print(f"\n{options.folds} folds, tuned against base, {found}")
    print(advice(found, options.config, options.overrides))
    print(f"results: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
