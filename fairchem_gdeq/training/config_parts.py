"""Parts of a config that are made to see whether they can be: nothing is read for it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from fairchem_gdeq.relax import ADJOINTS, SOLVERS
from fairchem_gdeq.training.config_table import UNIT
from fairchem_gdeq.training.one_line import sentence
from fairchem_gdeq.training.rules import said

OPTIMIZER = f"{UNIT}.optimizer_fn"
OF_OPTIONS = (TypeError, ValueError, InstantiationException)  # what says something of a config
_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")


def unfit_job(config: DictConfig) -> str | None:
    """What fairchem's own types have against the section ``job``; it would say so in several lines."""
    from fairchem.core.launchers.api import JobConfig

    try:
        merged = OmegaConf.merge({"job": OmegaConf.structured(JobConfig)}, config)
        OmegaConf.to_container(merged.job, resolve=True)
    except OmegaConfBaseException as error:
        key, first = error.full_key or "job", str(error).splitlines()[0]
        if isinstance(error, InterpolationResolutionError):
            return f"{key}: expected a value that can be made out, found that {first}"
        value = said(OmegaConf.select(config, key))
        return f"{key}={value}: expected what fairchem's section job can hold, found that {first}"
    return None


def unbuilt(config: DictConfig) -> str | None:
    """What the solver, the adjoint or the optimizer of a config has against its options; the first."""
    for key, made in PARTS.items():
        try:
            part = OmegaConf.select(config, key)
        except OmegaConfBaseException:
            continue  # a key that it refers to is not there, of which more is said later
        if part is not None and (text := _unmade(key, part, made)):
            return text
    return None


def _unmade(key: str, part: Any, made: Callable[[Any], str | None]) -> str | None:
    """What to say of a part that cannot be made; None where it can."""
    try:
        return made(part)
    except OmegaConfBaseException:
        return None  # as above
    except Exception as error:  # whatever others' classes raise
        if not isinstance(error, OF_OPTIONS) and sentence(error) is None:
            return None  # it may need what is not on this machine, such as a GPU where a job is submitted
        # Of an option that is unknown, here is known what there is in its place.
        text = None if _UNKNOWN.search(str(error)) else sentence(error)
        return (
            (text if text.startswith(key) else f"{key}: {text}")
            if text
            else _refused(key, part, error)
        )


def _refused(key: str, part: Any, error: Exception) -> str:
    """What to say of a part whose class, of somebody else, has something against its options."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Hydra's own is of several lines
    reason = " ".join(str(error).split()).rstrip(".")
    if not isinstance(part, Mapping):
        return f"{key}={said(part)}: expected one that can be made, found {reason}"
    target = str(part.get("_target_"))
    if unknown := _UNKNOWN.search(reason):
        name = unknown[1]
        return (
            f"{key}.{name}={said(part.get(name))}: expected an option of {target}, which has none of "
            f"that name. Leave it out, ~{key}.{name}, or take one of {', '.join(_options(target))}"
        )
    given = ", ".join(f"{k}={said(v)}" for k, v in part.items() if not str(k).startswith("_"))
    return f"{key}: expected options that {target} takes, found {given}: {reason}"


def _options(target: str) -> list[str]:
    """The names of the options of a class, without what an optimizer is given by others."""
    return [name for name in inspect.signature(get_object(target)).parameters if name != "params"]


def _from_a_registry(registry: Any) -> Callable[[Any], str | None]:
    """Makes a part that is given by its name, or by its ``_target_`` or ``name`` and options."""

    def made(part: Any) -> None:
        if isinstance(part, Mapping) and "_target_" in part:
            instantiate(part)
        else:
            registry.make(part)

    return made


def _optimizer(section: DictConfig) -> str | None:
    """What to say of an optimizer whose step asks for a function that computes the loss."""
    made = instantiate(section)
    step = getattr(getattr(made, "func", None), "step", None)
    closure = inspect.signature(step).parameters.get("closure") if step else None
    if closure is not None and closure.default is inspect.Parameter.empty:
        return (
            f"{OPTIMIZER}._target_={section.get('_target_')}: expected an optimizer whose step() needs "
            "no closure, such as torch.optim.AdamW, torch.optim.Adam or torch.optim.SGD: the gradient of "
            "a step is computed once"
        )
    made(params=[torch.nn.Parameter(torch.zeros(1))])
    return None


PARTS: dict[str, Callable[[Any], str | None]] = {
    "relaxer.solver": _from_a_registry(SOLVERS),
    f"{UNIT}.signal.adjoint": _from_a_registry(ADJOINTS),
    OPTIMIZER: _optimizer,
}
