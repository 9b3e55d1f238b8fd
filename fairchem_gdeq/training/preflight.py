"""What a run needs and this machine lacks, said in one line before anything is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from fairchem_gdeq.training.config_rules import broken_rules
from fairchem_gdeq.training.config_table import LOADERS
from fairchem_gdeq.training.frame_checks import NO_FORCES
from fairchem_gdeq.training.replay import BASE

PARTS = (".", "logs", "checkpoints", "results")  # of a run's folder, which fairchem and we make


def refusals(config: DictConfig) -> list[str]:
    """What is wrong with a config of ours, a sentence each; empty where it can be run here.

    Args:
        config: as Hydra composed it, of one of our runners.
    """
    if broken := list(broken_rules(config)):
        return broken
    text = unresolved(config) or unwritable(config.get("job") or {})
    if not text and not is_local(config):
        text = no_slurm()
    text = text or missing(config)
    if not text and is_local(config):  # else the device is another machine's
        text = no_device(config)
    if not text and config.get("mode") == "train":
        text = shared(config)
    return [text] if text else []


def is_local(config: DictConfig) -> bool:
    """Whether it runs on this machine."""
    mode = OmegaConf.select(config, "job.scheduler.mode", default="LOCAL")  # fairchem's own
    return str(mode).upper() == "LOCAL"


def no_base(path: str, hint: str) -> str | None:
    """What to say where there is no base potential at ``path``; None where there is."""
    if Path(path).is_file():
        return None
    if Path(path).is_dir():
        return (
            f"base potential {path}: expected a file (inference_ckpt.pt), found a folder. Name the file "
            "in it with base=PATH"
        )
    return f"base potential {path}: no such file (working folder {Path.cwd()}). {hint}"


def no_frames(folder: str, key: str, without: str) -> str:
    """What to say where there are no frames in ``folder``, which ``key`` names; ``without`` is its
    value that does without them.
    """
    return (
        f"frames {folder}: no such file or folder (working folder {Path.cwd()}). Name labelled frames "
        f"with {key}=FOLDER, or do without them: {key}={without}"
    )


def no_slurm() -> str | None:
    """What to say where a job cannot be submitted: fairchem would say that it was."""
    if shutil.which("sbatch"):
        return None
    return (
        "job.scheduler.mode is SLURM, and there is no sbatch here: start this on a login node of the "
        "cluster, or add job.scheduler.mode=LOCAL"
    )


def unwritable(job: Mapping[str, Any]) -> str | None:
    """What to say where a run's folder, or one in it, can be neither written nor made."""
    name = job.get("timestamp_id")  # else fairchem makes a new one
    if "run_dir" not in job:  # fairchem makes one
        return None
    for key, part in (("run_dir", ""), *((("timestamp_id", p) for p in PARTS) if name else ())):
        place = Path(str(job["run_dir"]), str(name) if part else "", part).absolute()
        there = next(each for each in (place, *place.parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return (
                f"job.{key}={job[key]}: expected a folder that can be written, found that {there} "
                f"{'cannot be' if there.is_dir() else 'is a file'}. Choose another with "
                f"job.{key}={'FOLDER' if key == 'run_dir' else 'NAME'}"
            )
    return None


def unresolved(config: DictConfig) -> str | None:
    """What to say of a config with keys that have no value, or refer to what is not there."""
    try:
        OmegaConf.to_container(config.runner, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        unset = list(_unset(OmegaConf.to_container(config), ""))
        keys = [key for key in unset if not key.startswith("runner.")] or unset
        if keys and isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
            said = f"{', '.join(keys)}: expected a value, found none (???)"
            return f"{said}. Give one, {keys[0]}=VALUE"
        first = str(error).splitlines()[0]
        return f"{error.full_key}: expected a value that can be made out, found that {first}"
    return None


def _unset(stored: Any, key: str) -> Iterator[str]:
    """The keys of a config whose value is still to be given."""
    if stored == "???":
        yield key
    elif isinstance(stored, dict):
        for name, value in stored.items():
            yield from _unset(value, f"{key}.{name}" if key else str(name))


def shared(config: DictConfig) -> str | None:
    """What to say where two splits of a training have a file in common; folds of one set may."""
    seen: dict[Path, str] = {}
    for each in _data_sets(config):
        for name, split in each.splits.items():
            for source in _flat(() if split.get("fold") else split.src):
                for file in _files(source):
                    other = seen.setdefault(file, name)
                    if other != name:
                        return (
                            f"data set {source} is of the splits {other} and {name}: expected other "
                            "structures in each, or scores are of what was trained on or chosen by. "
                            f"Name another folder with paths.{name}=FOLDER"
                        )
    return None


def _data_sets(config: DictConfig) -> Iterator[DictConfig]:
    """The sections of data sets of all loaders."""
    for loader in LOADERS:
        yield from OmegaConf.select(config, loader).dataset.dataset_configs.values()


def _files(source: str) -> Iterator[Path]:
    """The files of a data set, by their true places."""
    for found in map(Path, glob(source)):
        for file in found.iterdir() if found.is_dir() else [found]:
            if file.name != "metadata.npz":
                yield file.resolve()


def _flat(source: Any) -> Iterator[str]:
    """The paths of a path, or of a list of paths and of such lists."""
    if isinstance(source, str):
        yield source
        return
    for each in source:
        yield from _flat(each)


def missing(config: DictConfig) -> str | None:
    """The first file that the config names and that is not there; None if all are.

    Args:
        config: of a run of ``GDEQRunner``, as Hydra composed it.
    """
    runner = config.runner
    here = f"(working folder {Path.cwd()})"
    for each in _data_sets(config):
        for split in each.splits.values():
            for source in _flat(split.src):
                if not glob(source):
                    return (
                        f"data set {source}: no such file or folder {here}. {each.get('hint', '')}"
                    )
    for key, folder in _frames(runner):
        if not glob(folder):
            return no_frames(folder, f"forces.{key}", NO_FORCES if key == "src" else "null")
    base = runner.train_eval_unit.model
    if "path" in base and (text := no_base(base.path, base.get("hint", ""))):
        return text
    return None


def no_device(config: DictConfig) -> str | None:
    """What to say where this machine, on which the run would start, has no such device."""
    wanted = OmegaConf.select(config, "job.device_type", default="CUDA")  # fairchem's own
    if wanted == "CUDA" and not torch.cuda.is_available():
        return "job.device_type is CUDA, and PyTorch finds no GPU: add job.device_type=CPU"
    return None


def _frames(runner: DictConfig) -> Iterator[tuple[str, str]]:
    """Folders of labelled frames that the mode reads, each after its key in the section ``forces``."""
    places = {"src": runner.train_eval_unit.get("forces"), "val": runner.get("held_frames")}
    wanted = {"train": ("src", "val"), "validate": ("val",)}.get(runner.get("mode", "train"), ())
    for key in wanted:
        given = (places[key] or {}).get("src")
        for folder in [given] if isinstance(given, str) else given or ():
            if key == "val" or folder not in (BASE, NO_FORCES):
                yield key, folder
