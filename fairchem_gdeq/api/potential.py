"""A fairchem 2 potential, and how structures are relaxed with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from fairchem.core.units.mlip_unit.mlip_unit import Task
from fairchem.core.units.mlip_unit.predict import MLIPPredictUnit
from hydra.utils import instantiate
from torch import nn

from fairchem_gdeq.api.runs import FinishedRun
from fairchem_gdeq.api.structures import as_list, packs, to_row
from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.fairchem2.base import load_base, open_inference
from fairchem_gdeq.fairchem2.fields import HydraForceField, force_task, hydra_model
from fairchem_gdeq.fairchem2.supported import element_limit, require_exact
from fairchem_gdeq.fairchem2.task import IS2RS

ATOMS_TOGETHER = {"cpu": 1000, "cuda": 10_000}  # evaluated at once; halved where memory runs out


@dataclass(frozen=True)
class Potential:
    """A model with its tasks for one data set.

    Attributes:
        model: the bare fairchem 2 model.
        tasks: what its heads predict for ``dataset``; one of them is forces.
        dataset: the name by which the model knows such data.
        task: step alpha, and the relaxer that ``relax`` and ``evaluate`` use.
        config: how the model is built, to save it; None where that is not known.
        tasks_config: all tasks of its checkpoint, to save them.
        name: in tables.
    """

    model: HydraModel
    tasks: list[Task]
    dataset: str
    task: IS2RS = field(default_factory=IS2RS)
    config: Any = None
    tasks_config: Any = None
    name: str = "potential"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights, and of the positions that it is given."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    @property
    def atoms_together(self) -> int:
        """Atoms that are evaluated at once where nothing else is asked for."""
        return ATOMS_TOGETHER.get(self.device.type, ATOMS_TOGETHER["cpu"])

    def row(self, atoms: ase.Atoms, index: int, target: ase.Atoms | None = None) -> AtomicData:
        """A structure as the model takes it, on the host.

        Raises:
            ValueError: it has an element that the model does not know.
        """
        known = element_limit(self.model)
        if known is not None and atoms.numbers.max(initial=0) >= known:
            raise ValueError(
                f"atomic number {atoms.numbers.max()}: the model knows elements up to {known - 1}"
            )
        return to_row(atoms, index, self.dataset, self.dtype, target)

    def field(self, batch: AtomicData) -> HydraForceField:
        """The forces of a batch, on the model's device; the graph is built at every evaluation.

        Raises:
            ValueError: as ``HydraForceField.unfrozen``.
        """
        return HydraForceField.unfrozen(self.model, self.tasks, batch).on(self.device)

    def forces(
        self, structures: ase.Atoms | Sequence[ase.Atoms], max_atoms: int | None = None
    ) -> list[np.ndarray]:
        """Forces [n, 3] of each structure, eV/Angstrom, as the model gives them.

        Nothing is taken out: neither net forces nor those on fixed atoms.
        """
        found = []
        for batch in self._batches(structures, max_atoms):
            with torch.no_grad():
                out = self.field(batch)(batch.pos.to(self.device))
            found += [part.double().cpu().numpy() for part in out.split(batch.natoms.tolist())]
        return found

    def energies(
        self, structures: ase.Atoms | Sequence[ase.Atoms], max_atoms: int | None = None
    ) -> list[float] | None:
        """Energy of each structure, eV, without element references; None where none is predicted.

        Fine-tuning changes the forces of direct-force models alone, to which the energy then does not
        belong.
        """
        task = next((task for task in self.tasks if task.property == "energy"), None)
        if task is None:
            return None
        task.normalizer.to(self.device)
        found: list[float] = []
        for batch in self._batches(structures, max_atoms):
            with torch.no_grad():
                out = self.field(batch).energies(batch.pos.to(self.device), task)
            found += out.double().tolist()
        return found

    def _batches(
        self, structures: ase.Atoms | Sequence[ase.Atoms], max_atoms: int | None
    ) -> Iterator[AtomicData]:
        given = as_list(structures)
        for pack in packs(given, max_atoms or self.atoms_together):
            yield collate([self.row(given[i], i) for i in pack])

    def ase_calculator(self) -> PotentialCalculator:
        """For ``atoms.calc``, with which ASE's optimizers and dynamics use this potential."""
        return PotentialCalculator(self)

    def to(self, device: torch.device | str) -> Potential:
        """The potential on a device; a model that moves is copied."""
        there = torch.device(device)
        if there.type == self.device.type and there.index in (None, self.device.index):
            return self
        return replace(self, model=copy.deepcopy(self.model).to(there))

    def save(self, path: str | Path) -> None:
        """Write an inference checkpoint that fairchem's ``load_predict_unit`` and we open.

        Raises:
            ValueError: it was made of an open model, of which the config is not known.
        """
        if self.config is None or self.tasks_config is None:
            raise ValueError(
                "this potential was made of an open model, whose config is not known: load it from "
                "its checkpoint with load_potential(PATH) to save what becomes of it"
            )
        model = copy.deepcopy(self.model).cpu()
        averaged = torch.optim.swa_utils.AveragedModel(model)
        torch.save(
            MLIPInferenceCheckpoint(
                model_config=copy.deepcopy(self.config),
                model_state_dict=model.state_dict(),
                ema_state_dict=averaged.state_dict(),
                tasks_config=copy.deepcopy(self.tasks_config),
            ),
            path,
        )


class PotentialCalculator(Calculator):
    """Forces of a ``Potential`` for ASE.

    ASE's optimizers ask for an energy to print. It is NaN: fine-tuning changes the forces alone, to
    which an energy of the base would no longer belong. For a calculator with all that a checkpoint
    predicts, save the potential and open it with fairchem.

    Attributes:
        evaluations: how often the model was called.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - ASE declares a list

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential, self.evaluations = potential, 0

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``results``."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None  # ASE's method has set them
        (forces,) = self.potential.forces(self.atoms)
        self.evaluations += 1
        self.results = {"forces": forces, "energy": np.nan, "free_energy": np.nan}


def load_potential(
    source: str | Path | HydraModel | MLIPPredictUnit,
    dataset: str | None = None,
    device: torch.device | str | None = None,
    *,
    tasks: Sequence[Task] | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust_files: bool = False,
) -> Potential:
    """A potential that predicts forces.

    Args:
        source: an inference checkpoint of fairchem 2; the folder of a run, whose chosen model then
            relaxes as the run did; or a model or predict unit that is open already, which is copied.
        dataset: the name by which its tasks know such data, such as ``oc25``; None where they are
            for a single data set.
        device: such as ``cuda``; None: a file goes to the GPU if there is one, a model stays.
        tasks: those of an open model that does not have its own.
        overrides: changes of the model's config: ``{"backbone": {"always_use_pbc": False}}``.
        trust_files: open a file also if it asks for more than a checkpoint needs, which then runs.

    Raises:
        FileNotFoundError: there is no such file, or no chosen model in the folder.
        ValueError: no inference checkpoint, no forces for that data set, or a model that cannot be
            differentiated exactly; says why.
        TypeError: ``source`` is something else.
    """
    config = stored = None
    task = IS2RS()
    if isinstance(source, str | Path) and Path(source).is_dir():
        run = FinishedRun.of(Path(source))
        source, task, dataset = run.checkpoint, run.task, dataset or run.dataset
    if isinstance(source, str | Path):
        name = Path(source).stem
        model = load_base(str(source), overrides, trust_files=trust_files)
        config, stored = model.finetune_model_full_config, model.base_tasks
        every = [instantiate(each) for each in stored]
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    else:
        name, model, every = _opened(source, tasks)
        if overrides is not None:
            raise ValueError("overrides are for checkpoints: this model is built already")
        path = getattr(source, "_inference_model_path", None)
        if path is not None and Path(path).is_file():
            opened = open_inference(str(path), trust_files)
            config, stored = opened.model_config, opened.tasks_config
    chosen, dataset = _for_dataset(every, dataset)
    force_task(chosen)
    require_exact(model)
    there = next(model.parameters()).device if device is None else torch.device(device)
    model = model.to(there).eval()
    for each in chosen:
        each.normalizer.to(there)
    return Potential(model, chosen, dataset, task, config, stored, name)


def _opened(source: Any, tasks: Sequence[Task] | None) -> tuple[str, HydraModel, list[Task]]:
    """Name, copy and tasks of a model that is open already."""
    inside = source.model if isinstance(source, MLIPPredictUnit) else source
    if not isinstance(inside, nn.Module):
        raise TypeError(
            "expected an inference checkpoint, a fairchem 2 model or its predict unit, got "
            f"{type(source).__name__}"
        )
    model = copy.deepcopy(hydra_model(inside))
    own = getattr(model, "_tasks", None) or {}
    every = list(tasks) if tasks is not None else [copy.deepcopy(t) for t in own.values()]
    if not every:
        raise ValueError("the model does not say what its heads predict: give its tasks")
    return type(model.backbone).__name__, model, every


def _for_dataset(every: list[Task], dataset: str | None) -> tuple[list[Task], str]:
    """The tasks of a data set, which may be left out where there is only one."""
    known = sorted({name for t in every if t.property == "forces" for name in t.datasets})
    if dataset is None and len(known) == 1:
        dataset = known[0]
    if dataset not in known:
        raise ValueError(
            f"the potential predicts forces for the data sets {', '.join(known) or 'none'}, "
            f"not for {dataset!r}: choose one of them with dataset=NAME"
        )
    return [task for task in every if dataset in task.datasets], str(dataset)
