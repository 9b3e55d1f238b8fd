"""What the numbers and words of a config can mean, checked before anything is loaded.

Classes check their own settings too; here they are named by the keys that a user types, and all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairchem_gdeq.training.frame_checks import NO_FORCES
from fairchem_gdeq.training.history import KEEP
from fairchem_gdeq.training.replay import BASE

SHOWN = 120  # characters of a value in a message


@dataclass(frozen=True)
class Rule:
    """What a key expects.

    Attributes:
        expected: in words.
        accepts: whether a value is that.
    """

    expected: str
    accepts: Callable[[Any], bool]

    def or_infinite(self) -> Rule:
        """The same, or infinity, with which a limit is none."""
        return Rule(f"{self.expected}, or inf", lambda v: v == math.inf or self.accepts(v))

    def or_null(self) -> Rule:
        """The same, or null."""
        return Rule(f"{self.expected}, or null", lambda v: v is None or self.accepts(v))


def number(low: float, high: float = math.inf, above: bool = False, below: bool = False) -> Rule:
    """A finite number from ``low`` to ``high``; strictly ``above`` and ``below``, where that is said."""

    def accepts(value: Any) -> bool:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            return False
        return (value > low if above else value >= low) and (
            value < high if below else value <= high
        )

    bound = "above" if above else "from"
    text = f"a number {bound} {low:g}"
    if high < math.inf:
        text += f" {'and below' if below else 'to'} {high:g}"
    elif not above:
        text += " on"
    return Rule(text, accepts)


def whole(low: int) -> Rule:
    """A whole number, at least ``low``."""
    return Rule(
        f"a whole number from {low} on",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low,
    )


def one_of(*words: str) -> Rule:
    """One of these words."""
    return Rule(f"one of {', '.join(words)}", lambda v: v in words)


TRUTH = Rule("true or false", lambda v: isinstance(v, bool))
POSITIVE, NOT_NEGATIVE = number(0, above=True), number(0)
PART = Rule(
    "the part of the split that is used, above 0 and at most 1", number(0, 1, above=True).accepts
)
_UNIT = "runner.train_eval_unit"
RULES: dict[str, Rule] = {
    "epochs": whole(1),
    "lr": POSITIVE,
    "ema_decay": number(0, 1, below=True).or_null(),
    "max_atoms": whole(2),
    "eval_max_atoms": whole(2),
    "num_workers": whole(0),
    "train_structures": PART,
    "val_structures": PART,
    "test_structures": PART,
    "horizon": whole(0),
    "alpha": POSITIVE,
    "alpha_lr": NOT_NEGATIVE,
    "alpha_decoder": whole(0),
    "proximal": NOT_NEGATIVE,
    "momentum": number(0, 1, below=True),
    "annealing": number(0, 1, above=True),
    "max_unroll": whole(1),
    "spare": NOT_NEGATIVE,
    "checkpoint_minutes": NOT_NEGATIVE,
    "keep": one_of(*KEEP),
    "most_diverged": number(0, 1),
    "warm_start": TRUTH,
    "compile": TRUTH,
    "trust_files": TRUTH,
    "forces.max_atoms": whole(2).or_null(),
    "forces.lambda_forces": NOT_NEGATIVE.or_null(),
    "forces.limit": NOT_NEGATIVE.or_infinite().or_null(),
    "forces.updates": whole(0).or_null(),
    "forces.alone": number(0, 1).or_null(),
    "diagnose.structures": whole(1),
    "diagnose.starts": whole(0),
    "diagnose.shift": NOT_NEGATIVE,
    "audit.structures": whole(1),
    "audit.most_frames": whole(0),
    "audit.nve.runs": whole(0),
    "audit.nve.steps": whole(1),
    "audit.nve.fs": POSITIVE,
    "audit.nve.kelvin": NOT_NEGATIVE,
    "relaxer.horizon": whole(0),
    "relaxer.fmax": POSITIVE,
    "relaxer.max_steps": whole(0),
    "job.seed": whole(0),
    "job.scheduler.ranks_per_node": whole(1),
    "job.scheduler.num_nodes": whole(1),
    "job.scheduler.slurm.timeout_hr": whole(1),  # sbatch takes no part of an hour
    f"{_UNIT}.clip_grad_norm": POSITIVE.or_infinite().or_null(),
    f"{_UNIT}.print_every": whole(1),
    f"{_UNIT}.optimizer_fn.weight_decay": NOT_NEGATIVE,
    f"{_UNIT}.is2rs.cap": POSITIVE.or_null(),
    f"{_UNIT}.is2rs.basin.delta_q": POSITIVE,
    f"{_UNIT}.is2rs.basin.displacement": POSITIVE,
    f"{_UNIT}.signal.lambda_guide": NOT_NEGATIVE,
    f"{_UNIT}.signal.lambda_eq": NOT_NEGATIVE,
    f"{_UNIT}.signal.fmax": POSITIVE,
    f"{_UNIT}.signal.max_steps": whole(0),
    f"{_UNIT}.signal.adjoint.tol": number(0, 1, above=True, below=True),
    f"{_UNIT}.signal.adjoint.max_vjps": whole(1),
    f"{_UNIT}.signal.adjoint.damping": NOT_NEGATIVE,
}
WITHOUT_STEPS = ("direct", "ft_static", "implicit")  # signals without a rollout
SECTIONS = ("paths", "forces", "relaxer", "diagnose", "audit", "audit.nve", "job", "job.scheduler")
_ABSENT = object()


def broken_rules(config: DictConfig) -> Iterator[str]:
    """What a composed config cannot mean, a sentence each: key, what was found, what is expected."""
    for key, rule in RULES.items():
        value = _select(config, key)
        if value is not _ABSENT and not rule.accepts(value):
            yield f"{key}={_said(value)}: expected {rule.expected}"
    yield from _words_for_sections(config)
    yield from _unsuited_splits(config)
    yield from _unsuited_forces(config)
    width = _select(config, "alpha_decoder")
    if width not in (_ABSENT, None, 0):
        if _select(config, "alpha_lr") == 0:
            yield "alpha_lr=0: expected a number above 0 for alpha_decoder, which learns by it"
        if (signal := _select(config, "signal")) in WITHOUT_STEPS:
            yield f"alpha_decoder={_said(width)}: expected 0 for signal={signal}, which trains no steps"


def _words_for_sections(config: DictConfig) -> Iterator[str]:
    """A word or a number where a section of keys stands."""
    for key in SECTIONS:
        value = _select(config, key)
        if value is not _ABSENT and not isinstance(value, DictConfig):
            yield f"{key}={_said(value)}: expected a section of keys. Set a key of it, {key}.KEY=VALUE"


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
        yield f"forces.src={_said(src)}: expected a folder of frames, on which signal=ft_static trains"
    why = "for signal=direct, which makes the head of forces one of displacements"
    if signal == "direct" and src not in (None, NO_FORCES):
        yield f"forces.src={_said(src)}: expected {NO_FORCES} {why}"
    if signal == "direct" and held is not None:
        yield f"forces.val={_said(held)}: expected null {why}"


def _said(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
