"""What the numbers and words of a config can mean, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairchem_gdeq.training.config_parts import unbuilt, unfit_job
from fairchem_gdeq.training.config_table import (
    LOADERS,
    NEEDED,
    PATTERNS,
    RELAXNET,
    RELAXNET_RULES,
    RELAXNET_TOLD,
    RULES,
    SECTIONS,
    TOLD,
)
from fairchem_gdeq.training.frame_checks import NO_FORCES
from fairchem_gdeq.training.replay import BASE
from fairchem_gdeq.training.rules import FULL, Rule, said

__all__ = ["RULES", "broken_rules"]

WITHOUT_STEPS = ("direct", "ft_static", "implicit")  # signals without a rollout
_ABSENT = object()


def broken_rules(config: DictConfig) -> Iterator[str]:
    """What a composed config cannot mean, a sentence each: key, what was found, what is expected."""
    broken = [*_words_for_sections(config), *_unmet(config)]
    yield from broken
    yield from _unsuited_splits(config)
    yield from _unsuited_forces(config)
    width = _select(config, "alpha_decoder")
    if width not in (_ABSENT, None, 0):
        if _select(config, "alpha_lr") == 0:
            yield "alpha_lr=0: expected a number above 0 for alpha_decoder, which learns by it"
        if (signal := _select(config, "signal")) in WITHOUT_STEPS:
            yield f"alpha_decoder={said(width)}: expected 0 for signal={signal}, which trains no steps"
    if not broken:  # else the same would be said again, in others' words
        yield from filter(None, (unfit_job(config), unbuilt(config)))


def _unmet(config: DictConfig) -> Iterator[str]:
    """The keys whose values are not what the table expects."""
    rules, told = RULES, TOLD
    if _select(config, "runner._target_") == RELAXNET:
        rules, told = RULES | RELAXNET_RULES, TOLD | RELAXNET_TOLD
    values = {key: _select(config, key) for key in rules}
    broken = {k for k, v in values.items() if v is not _ABSENT and not _meets(rules[k], v)}
    stored: Any = OmegaConf.to_container(config)
    referring = [f"${{{key}}}" for key in broken]  # said of the key that they refer to
    for key in rules:
        if key in broken and _at(stored, key) not in referring:
            yield f"{key}={said(values[key])}: expected {rules[key].expected}"
    for key, value in _own_values("", stored):
        if key in rules:
            continue
        found = rules[told[key]] if key in told else _of_a_pattern(key)
        if found is not None and not _meets(found, value):
            yield f"{key}={said(value)}: expected {found.expected}"


def _meets(rule: Rule, value: Any) -> bool:
    """Whether a rule accepts a value; one with something in it that cannot be resolved is named later."""
    try:
        return rule.accepts(value)
    except OmegaConfBaseException:
        return True


def _at(stored: Any, key: str) -> Any:
    """The value of a dotted key in a plain config, as it is written; None where there is none."""
    for name in key.split("."):
        stored = stored.get(name) if isinstance(stored, dict) else None
    return stored


def _of_a_pattern(key: str) -> Rule | None:
    """The rule of a key that has none of its own; None where there is none."""
    return next((rule for pattern, rule in PATTERNS.items() if fnmatchcase(key, pattern)), None)


def _own_values(key: str, stored: Any) -> Iterator[tuple[str, Any]]:
    """Keys with a value of their own, which is given and refers to no other key's."""
    if isinstance(stored, str) and (stored == "???" or "${" in stored):
        return
    if key:
        yield key, stored
    pairs: Any = enumerate(stored) if isinstance(stored, list) else ()
    for name, value in stored.items() if isinstance(stored, dict) else pairs:
        yield from _own_values(f"{key}.{name}" if key else str(name), value)


def _words_for_sections(config: DictConfig) -> Iterator[str]:
    """A word, a number or nothing where a section of keys stands; a loader of no data."""
    for loader in LOADERS:
        if FULL.accepts(_select(config, loader)):
            yield from _without_data(config, f"{loader}.dataset.dataset_configs")
    ours = str(_select(config, "runner._target_")).startswith("fairchem_gdeq.")
    for key in SECTIONS:
        value = _select(config, key)
        if value is _ABSENT:
            if key in NEEDED and ours:
                yield f"{key}: expected a section of keys, found none. Take it from a config of ours"
        elif not FULL.accepts(value):
            yield f"{key}={said(value)}: expected a section of keys. Set a key of it, {key}.KEY=VALUE"


def _without_data(config: DictConfig, key: str) -> Iterator[str]:
    """Data sets that are no sections, or have no splits."""
    configs = _select(config, key)
    if not FULL.accepts(configs):
        yield f"{key}: expected a section of data sets, found none"
        return
    for name, each in configs.items():
        splits: Any = each.get("splits") if FULL.accepts(each) else None
        if not FULL.accepts(splits) or not all(map(_has_source, splits.values())):
            yield f"{key}.{name}: expected a section with splits, each a section with src, found none"


def _has_source(split: Any) -> bool:
    return bool(FULL.accepts(split) and "src" in split)


def _unsuited_splits(config: DictConfig) -> Iterator[str]:
    """A held-out split that is another one, or one without targets where it is to be scored."""
    test, mode = _select(config, "test"), _select(config, "mode")
    if test in ("train", "val"):
        yield (
            f"test={test}: expected a split that is held out. To look at {test}, leave test as it is and "
            f"take split={test}"
        )
    scored = mode == "train" or (mode == "validate" and _select(config, "split") == test)
    if scored and _select(config, "test_target_key") is None:
        yield (
            f"test_target_key=null: expected the key of relaxed positions, by which mode={mode} scores "
            "the split. Without targets a split can only be predicted, with --mode predict"
        )


def _select(config: DictConfig, key: str) -> Any:
    """The value of a key; absent also where it cannot be resolved, of which Hydra says where."""
    try:
        return OmegaConf.select(config, key, default=_ABSENT)
    except OmegaConfBaseException:
        return _ABSENT


def _unsuited_forces(config: DictConfig) -> Iterator[str]:
    """Forces that the signal cannot have beside it: ``ft_static`` has them alone, ``direct`` has none."""
    signal, src, held = (_select(config, key) for key in ("signal", "forces.src", "forces.val"))
    if _ABSENT in (src, held):
        return
    if signal == "ft_static" and src in (None, NO_FORCES, BASE):
        yield f"forces.src={said(src)}: expected a folder of frames, on which signal=ft_static trains"
    why = "for signal=direct, which makes the head of forces one of displacements"
    if signal == "direct" and src not in (None, NO_FORCES):
        yield f"forces.src={said(src)}: expected {NO_FORCES} {why}"
    if signal == "direct" and held is not None:
        yield f"forces.val={said(held)}: expected null {why}"
