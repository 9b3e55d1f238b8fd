"""The ``task`` section of a fairchem 1 config of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.utils import instantiate

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.task import RelaxationTask
from fairchem_gdeq.fairchem1.force_settings import ForceSettings
from fairchem_gdeq.relax import Descent, Relaxer, Signal, make_signal
from fairchem_gdeq.relax.deprecated import current_settings
from fairchem_gdeq.training.history import KEEP
from fairchem_gdeq.training.replay import for_signal

FAIRCHEMS = ("strict_load",)  # keys of ``task`` that fairchem itself reads


@dataclass(frozen=True)
class Settings:
    """What ``task`` says, beside fairchem's own keys.

    Attributes:
        base: the checkpoint that is fine-tuned, a ``.pt`` of fairchem 1.
        base_hint: what to tell somebody who does not have it.
        run_id: name of the run's folders in ``checkpoints``, ``results`` and ``logs``; the same
            command goes on from there. ``--timestamp-id`` takes precedence; None is fairchem's time
            stamp.
        signal: ``gdeq``, ``bptt``, ``truncated_bptt``, ``implicit``, ``coupled`` or ``ft_static``.
        horizon: K, in training and, if ``relaxer`` says no other, before the solver in evaluation.
        alpha, cap: of the operator, Angstrom per (eV/Angstrom) and Angstrom.
        momentum, annealing: of ``relax.Descent``, how its plain steps follow one another.
        settings: of the signal, but its horizon; those that another signal has are left out.
        relaxer: of ``task.Relaxer``; its horizon is K where it has none.
        basin: of ``metrics.Basin``.
        most_diverged: share of the latest structures that may diverge before the run is ended.
        warm_start: begin a structure's adjoint solve from its last answer, where there is more than
            one epoch: no structure is seen again in a single one.
        keep: which epoch is kept, one of ``history.KEEP``.
        forces: what is trained on beside the signal, and frames that are held out.
        eval_max_atoms: evaluated together where structures are only relaxed.
        split: ``train``, ``val`` or ``test``: what ``--mode validate`` scores.
        baselines: rows of the table besides: ``ase_fire``, ``ase_lbfgs``.
        metrics: columns of the table besides, the path of each (``evaluation.metric.add_metrics``).
        reference: a file with reference forces, for FbT and AFbT (``reference.ReferenceFile``).
        trust_files: open checkpoints that ask for more than tensors and plain values; what they ask
            for then runs.
    """

    base: str
    eval_max_atoms: int
    base_hint: str = "Name a checkpoint of fairchem 1 with --task.base=PATH."
    run_id: str | None = None
    signal: str = "gdeq"
    horizon: int = 20
    alpha: float = 0.03
    cap: float | None = 0.1
    momentum: float = 0.0
    annealing: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    relaxer: Relaxer = field(default_factory=Relaxer)
    basin: Basin = field(default_factory=Basin)
    warm_start: bool = False
    most_diverged: float = 0.5
    keep: str = "better"
    forces: ForceSettings = field(default_factory=ForceSettings)
    split: str = "test"
    baselines: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    reference: str | None = None
    trust_files: bool = False

    @classmethod
    def read(cls, task: Mapping[str, Any]) -> Settings:
        """The settings in a ``task`` section.

        Raises:
            ValueError: an unknown key, a missing one, or a value that cannot be meant.
        """
        values = {key: value for key, value in task.items() if key not in FAIRCHEMS}
        horizon = values.get("horizon", cls.horizon)
        values["relaxer"] = {"horizon": horizon} | (values.get("relaxer") or {})
        values["relaxer"] = _built("task.relaxer", Relaxer, _parts(values["relaxer"]))
        if "basin" in values:
            values["basin"] = _built("task.basin", Basin, values["basin"])
        values["forces"] = _forces(values.get("forces"))
        # ``method`` is what they were called in version 0.1.
        values["settings"] = _parts({**values.pop("method", {}), **values.get("settings", {})})
        if "horizon" in values["settings"]:
            raise ValueError("task.settings: unknown keys horizon; it stands in task")
        for key in ("baselines", "metrics"):
            values[key] = _listed(values.get(key))
        settings: Settings = _built("task", cls, values)
        if settings.signal == "direct":
            raise ValueError(
                "task.signal=direct: fairchem-core 1.10 has no mark for a model of displacements, which "
                "would be taken for a potential. Expected another signal, or a config of fairchem-core 2"
            )
        try:
            for_signal(settings.make_signal(), settings.forces.replay)
            _ = settings.is2rs
        except ValueError as error:
            raise ValueError(f"task: {error}") from error
        if settings.keep not in KEEP:
            raise ValueError(f"task.keep={settings.keep!r}: choose one of {', '.join(KEEP)}")
        if settings.split not in ("train", "val", "test"):
            raise ValueError(f"task.split={settings.split!r}: choose one of train, val, test")
        return settings

    def make_signal(self) -> Signal:
        """The training signal.

        Raises:
            ValueError: a name or setting that cannot be meant.
        """
        return make_signal(self.signal, **{**self.settings, "horizon": self.horizon})

    @property
    def is2rs(self) -> RelaxationTask:
        """How structures are relaxed and scored."""
        return RelaxationTask(
            alpha=self.alpha,
            cap=self.cap,
            descent=Descent(self.momentum, self.annealing),
            relaxer=self.relaxer,
            basin=self.basin,
        )


def _built(where: str, kind: type, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := set(values) - known:
        raise ValueError(
            f"{where}: unknown keys {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _forces(section: Mapping[str, Any] | None) -> ForceSettings:
    """The section ``forces``, with its keys in messages as a config of fairchem 1 has them."""
    try:
        found: ForceSettings = _built("task.forces", ForceSettings, section or {})
    except ValueError as error:
        said = re.sub(r"(?<![\w.])forces\.(?=\w)", "task.forces.", str(error))
        raise ValueError(said) from error
    return found


def _listed(given: Any) -> tuple[str, ...]:
    """Several names; on the command line, fairchem 1 leaves ``[one, other]`` a text."""
    if isinstance(given, str):
        given = [name.strip(" '\"") for name in given.strip("[] ").split(",")]
    return tuple(name for name in given or () if name)


def _parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a part that is given by its path (``_target_``) is made."""
    made = {
        key: instantiate(value) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in settings.items()
    }
    return current_settings(made)
