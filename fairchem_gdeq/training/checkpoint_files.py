"""Opening checkpoints without running what they ask for.

A checkpoint is a pickle, which can call anything that is installed, and the configs in it name
classes, which whoever builds the model calls. Here a file gets tensors, plain values and the few
classes of ``allowed``, its configs name parts of models, and everything else is refused.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import pickle
import re
import sys
import typing
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

import numpy as np
import omegaconf
import torch
from omegaconf import OmegaConf
from torch import nn

PACKAGES = ("fairchem", "fairchem_gdeq")  # may be imported because a file names them
AGAIN = "Name another file, or copy or download this one again"
TASKS = "fairchem.core.units.mlip_unit.mlip_unit."
# What stored configs name beside modules of models, losses and normalizers.
PLAIN_TARGETS = {
    *(TASKS + "Task", TASKS + "OutputSpec"),
    *("torch.DoubleTensor", "torch.FloatTensor", "torch.Tensor", "torch.tensor"),
}
# Under these, fairchem and Hydra import what they do not know by name; ``loss_fn`` and the like are
# sections with a ``_target_``.
IMPORTED = {"_target_", "model", "module", "head_cls", "fn", "loss_name"}
_said: set[tuple[str, str]] = set()  # file and what it asks for, logged once


class UntrustedFile(ValueError):
    """A file that asks for more than a checkpoint needs. It did not get it."""


@functools.cache
def allowed() -> tuple[Any, ...]:
    """Classes and functions that a checkpoint may name, beside PyTorch's tensors and their parts."""
    plain = (bool, bytes, dict, float, int, list, set, str, tuple, defaultdict, typing.Any)
    containers = ("DictConfig", "ListConfig")
    nodes = (*containers, *(name for name in dir(omegaconf) if name.endswith("Node")))
    configs = {getattr(omegaconf, name) for name in nodes if name != "Node"}
    metadata = {omegaconf.base.Metadata, omegaconf.base.ContainerMetadata}
    numbers = {type(np.dtype(code)) for code in ("b1", "i4", "i8", "f4", "f8")}
    scalar = np.float64(0).__reduce__()[0]
    found = [*plain, PosixPath, *configs, *metadata, np.dtype, *numbers, scalar]
    if int(np.__version__.partition(".")[0]) >= 2:  # files of NumPy 1 know it by its old place
        found.append((scalar, "numpy.core.multiarray.scalar"))
    try:  # fairchem-core 1 does not have it
        from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
    except ImportError:
        return tuple(found)
    return (*found, MLIPInferenceCheckpoint)


@contextmanager
def _only(names: tuple[Any, ...]) -> Iterator[None]:
    """What PyTorch's safe loader knows besides its own: these inside, what it was afterwards."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(names))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def open_checkpoint(path: str | Path, trust: bool = False) -> Any:
    """The content of a file written by ``torch.save``, on the CPU.

    Args:
        path: the file.
        trust: open it also if it asks for more than ``allowed``, which then runs; logged once.

    Raises:
        UntrustedFile: it asks for more; says what, and that nothing of it was run.
        ValueError: it is no file of ``torch.save``, or damaged.
    """
    with open(path, "rb") as file:  # opened once: what was checked is what is read
        if other := _no_checkpoint(file):
            raise ValueError(
                f"{path}: expected a checkpoint (of torch.save), found {other}. {AGAIN}"
            )
        try:
            try:
                with _only(allowed()):
                    return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                refuse(path, _asked_for(str(error)), trust, error)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=False)
        except UntrustedFile:
            raise
        except Exception as error:  # whatever damaged bytes make of PyTorch's reader
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"{path}: expected a checkpoint (of torch.save), found one that cannot be read "
                f"({reason}). {AGAIN}"
            ) from error


def _no_checkpoint(file: BinaryIO) -> str | None:
    """What a file is by its first bytes and list of contents, where ``torch.save`` has not written it."""
    head = file.read(4)
    file.seek(0)
    if not head:
        return "an empty file"
    if not head.startswith((b"PK", b"\x80")):
        return f"a file that begins with {head!r}"
    if head.startswith(b"PK"):
        try:
            names = zipfile.ZipFile(file).namelist()
        except zipfile.BadZipFile:
            return "one that is cut short or damaged"
        finally:
            file.seek(0)
        if not any(name.endswith("data.pkl") for name in names):
            return f"a zip file of {', '.join(names[:3]) or 'nothing'}"
    return None


def _asked_for(message: str) -> str:
    """PyTorch's reason without its advice, which is to trust the file."""
    if named := re.search(r"GLOBAL (\S+)", message):
        return f"its pickle asks for {named[1]}"
    reason = message.partition("WeightsUnpickler error:")[2] or message
    return f"it cannot be read as plain data ({reason.strip().splitlines()[0].rstrip('.')})"


def refuse(path: str | Path, reason: str, trust: bool, cause: Exception | None = None) -> None:
    """Raise, or where the file is trusted say once in the log what it was trusted with.

    Raises:
        UntrustedFile: ``trust`` is false.
    """
    if not trust:
        raise UntrustedFile(
            f"{path}: refused, {reason}, and checkpoints need only tensors, plain values, OmegaConf's "
            "containers and fairchem's own classes. Nothing of it was run. If you know who wrote the "
            "file and trust them, open it with trust_files=true (fairchem-core 1: "
            "--task.trust_files=True); otherwise do not use it."
        ) from cause
    if (str(path), reason) not in _said:
        _said.add((str(path), reason))
        logging.warning(f"{path}: {reason}; opened all the same, since trust_files is true")


def require_model_parts(path: str | Path, config: Any, trust: bool = False) -> None:
    """Refuse a stored config whose names are of anything but parts of a model.

    Whoever builds the model imports and calls what its config names. Let through are classes of
    PyTorch modules, from fairchem, from this package or from what has been imported already, and
    ``PLAIN_TARGETS``.

    Raises:
        UntrustedFile: it names something else; says what.
    """
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    for reason in _reasons(config):
        refuse(path, f"its stored config {reason}", trust)


def _reasons(config: Any, key: object = None) -> Iterator[str]:
    """Why what a config holds under ``key`` would do more than build a model."""
    if isinstance(config, dict):
        if config.get("finetune_config"):
            yield "has a finetune_config, by which fairchem opens another file unchecked"
        target = config.get("_target_")
        if target is not None and not (isinstance(target, str) and "." in target):
            yield f"calls {target!r}"
        for name, value in config.items():
            yield from _reasons(value, name)
    if isinstance(config, list | tuple):
        for value in config:
            yield from _reasons(value, key)
    if not isinstance(config, str):
        return
    if "${" in config:
        yield f"holds {config!r}, to be replaced when it is read"
    elif _is_path(config) and (key in IMPORTED or _is_found(config)) and not _is_part(config):
        yield f"names {config}, which is no PyTorch module of an installed model"


def _is_path(text: str) -> bool:
    """Whether it reads as ``module.name``."""
    module, dot, name = text.rpartition(".")
    return bool(dot and module and "/" not in module and name.isidentifier())


def _is_found(text: str) -> bool:
    """Whether the path begins with a module that can be imported; nothing is.

    A plain folder, which Python takes for a namespace, is looked into: ``data.v1`` beside a folder
    ``data`` names nothing.
    """
    first, *others = text.split(".")
    if first in sys.modules:
        return True
    found = importlib.util.find_spec(first) if first else None
    for part in others:
        if found is None or found.origin is not None or not found.submodule_search_locations:
            break
        found = PathFinder.find_spec(part, list(found.submodule_search_locations))
    return found is not None


def _is_part(text: str) -> bool:
    if text in PLAIN_TARGETS:
        return True
    module, _, name = text.rpartition(".")
    if module.partition(".")[0] not in PACKAGES and module not in sys.modules:
        return False
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, nn.Module)
