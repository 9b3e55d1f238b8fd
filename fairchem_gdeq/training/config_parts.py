"""Parts of a config that are made to see whether they can be: nothing is read for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairchem_gdeq.relax import ADJOINTS, SOLVERS
from fairchem_gdeq.training.config_table import UNIT
from fairchem_gdeq.training.one_line import sentence
from fairchem_gdeq.training.rules import said

OPTIMIZER = f"{UNIT}.optimizer_fn"


def unfit_job(config: DictConfig) -> str | None:
    """What fairchem's own types have against the section ``job``; it would say so in several lines."""
    from fairchem.core.launchers.api import JobConfig

    try:
        merged = OmegaConf.merge({"job": OmegaConf.structured(JobConfig)}, config)
        OmegaConf.to_container(merged.job, resolve=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "job"
        value = OmegaConf.select(config, key)
        return (
            f"{key}={said(value)}: expected what fairchem's {key} can be, found that "
            f"{str(error).splitlines()[0]}"
        )
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
        if text := sentence(error):
            return text if text.startswith(f"{key}") else f"{key}: {text}"
        options = [f"{key}.{name}" for name in part if not str(name).startswith("_")]
        return (
            f"{key}: expected options that {part.get('_target_')} takes, found that {_reason(error)}. "
            f"Mend one of {', '.join(options)}"
        )


def _reason(error: Exception) -> str:
    """The words of an error, without those that Hydra puts around them."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    return str(error).rstrip(".")


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
    optimizer = instantiate(section)(params=[torch.nn.Parameter(torch.zeros(1))])
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is None or closure.default is not inspect.Parameter.empty:
        return None
    return (
        f"{OPTIMIZER}._target_={section.get('_target_')}: expected an optimizer whose step() needs no "
        "closure, such as torch.optim.AdamW, Adam or SGD. A step's gradient is computed once, and this "
        "one would ask for it again and again"
    )


PARTS: dict[str, Callable[[Any], str | None]] = {
    "relaxer.solver": _from_a_registry(SOLVERS),
    f"{UNIT}.signal.adjoint": _from_a_registry(ADJOINTS),
    OPTIMIZER: _optimizer,
}
