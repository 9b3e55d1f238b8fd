"""Makes ``--mode X`` and our packaged configs known to ``fairchem -c FILE``.

Hydra imports this module in every Hydra program, so it must stay light and do nothing elsewhere:
``--mode`` is read only from what fairchem's own command line hands to ``hydra.compose``.
"""

from __future__ import annotations

import os
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

MODES = ("train", "validate", "predict", "diagnose", "audit")
FAIRCHEM_CLI = "fairchem.core._cli"


def translate(overrides: list[str]) -> list[str]:
    """``--mode X`` and ``--mode=X`` as the override ``mode=X``; everything else as it is.

    Raises:
        SystemExit: ``--mode`` without a value.
    """
    out: list[str] = []
    rest = iter(overrides)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--mode":
            out.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("-") or "=" in value:
            raise SystemExit(f"fairchem: --mode needs a value: one of {', '.join(MODES)}")
        out.append(f"mode={value}")
    return out


def check(config: Any) -> None:
    """Refuse an unknown mode, impossible settings and missing inputs before anything is loaded.

    The runner is told what it is started with: whoever starts after it may change fairchem's own file.

    Raises:
        SystemExit: the config runs our runner in a mode that it does not have, with settings that cannot
            be meant, or with files, a device or a Slurm that are not there.
    """
    runner = config.get("runner")
    if "mode" not in config or not isinstance(runner, DictConfig):
        return
    ours = str(runner.get("_target_")).startswith("fairchem_gdeq.")
    if ours and config.mode not in MODES:
        raise SystemExit(
            f"fairchem: unknown mode {config.mode!r}: choose one of {', '.join(MODES)}"
        )
    if not ours:
        return
    from fairchem_gdeq.training.one_line import end_in_one_line
    from fairchem_gdeq.training.preflight import is_local, refusals
    from fairchem_gdeq.training.same_run import settings_of

    if lines := refusals(config):
        raise SystemExit("\n".join(f"fairchem: {line}" for line in lines))
    end_in_one_line()
    if not is_local(config):
        from fairchem_gdeq.fairchem2.submitted import submit_ours

        submit_ours()
    leave_out_unread(config, "data")
    with open_dict(runner):
        runner.settings = settings_of(config)


def leave_out_unread(config: DictConfig, key: str) -> None:
    """Without a key that nothing reads, for which fairchem would refuse the config.

    So it is with the folder of a data set whose splits are all named by ``paths``.
    """
    without = config.copy()
    with open_dict(without):
        without.pop(key, None)
    try:
        OmegaConf.resolve(without)
    except InterpolationKeyError:
        return
    with open_dict(config):
        config.pop(key, None)


def _called_by_fairchem() -> bool:
    # Frames: this function, the wrapper, and whoever called hydra.compose.
    return sys._getframe(2).f_globals.get("__name__") == FAIRCHEM_CLI


def _wrap(compose: Any) -> Any:
    @wraps(compose)
    def compose_with_mode(*args: Any, **kwargs: Any) -> Any:
        if not _called_by_fairchem():
            return compose(*args, **kwargs)
        if kwargs.get("overrides"):
            kwargs["overrides"] = translate(list(kwargs["overrides"]))
        try:
            config = compose(*args, **kwargs)
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            if os.environ.get("GDEQ_TRACEBACK"):
                raise
            raise SystemExit(f"fairchem: {' '.join(str(error).split())}") from error
        if config.get("runner") is None:
            raise SystemExit(
                "fairchem: the config has no section runner: expected one that says what runs. Begin "
                "with configs/own/gdeq.yml, or with one of ours: `defaults: [/si/base@_global_, _self_]`"
            )
        check(config)
        return config

    compose_with_mode._fairchem_gdeq = True  # type: ignore[attr-defined]
    return compose_with_mode


if not getattr(hydra.compose, "_fairchem_gdeq", False):
    hydra.compose = _wrap(hydra.compose)


def config_folder() -> Path:
    """``configs/``: in the package where it was installed, beside it in a checkout."""
    root = Path(__file__).resolve().parents[2]
    installed = root / "fairchem_gdeq" / "configs"
    return installed if installed.is_dir() else root / "configs"


class PackagedConfigs(SearchPathPlugin):
    """Appends ``configs/``, so that ``defaults: [/si/base@_global_]`` resolves from anywhere."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Last in the path: names of other programs come first."""
        search_path.append(provider="fairchem-gdeq", path=f"file://{config_folder()}")
