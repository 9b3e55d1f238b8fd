"""torch-sim's optimizers with its in-flight autobatcher, on our operator's forces.

Its FIRE is in all versions; L-BFGS came later, in versions that need Python 3.12.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.kept import NotInstalled, not_installed
from benchmarks.peers.relaxations import Ended
from fairchem_gdeq.relax import Operator
from fairchem_gdeq.relax.segments import segment_max_norm

try:
    import torch_sim
    from torch_sim.autobatching import InFlightAutoBatcher
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    MISSING: ImportError | None = error
    ModelInterface = torch.nn.Module
else:
    MISSING = None

NAMES = {"torch-sim FIRE": "fire", "torch-sim L-BFGS": "lbfgs"}


class OperatorModel(ModelInterface):  # type: ignore[misc, valid-type]  # untyped, or not there
    """Forces of operators for torch-sim, and how often each structure was evaluated.

    torch-sim takes structures in and out of its batch without a word to the model. Its optimizers
    have no use for masses, so the mass of an atom says to which structure it belongs.

    Attributes:
        evaluations: [s] of each structure.
    """

    def __init__(self, operators: Sequence[Operator], dtype: torch.dtype) -> None:
        super().__init__()
        self._device, self._dtype = torch.device("cpu"), dtype
        self._compute_forces, self._compute_stress = True, False
        self._memory_scales_with = "n_atoms"
        self.operators, self.evaluations = operators, [0] * len(operators)
        self._joined: tuple[list[int], Operator] = [], operators[0]

    def state(self, starts: Sequence[Tensor], numbers: Sequence[Tensor]) -> Any:
        """Structures at X_0 [n, 3] (Angstrom) with atomic numbers [n], as torch-sim takes them."""
        sizes = torch.tensor([len(x) for x in starts])
        owner = torch.arange(len(starts)).repeat_interleave(sizes)
        return torch_sim.SimState(
            positions=torch.cat(list(starts)),
            masses=owner.to(self._dtype) + 1.0,
            cell=torch.cat([o.structures.cell for o in self.operators]).mT.contiguous(),  # columns
            pbc=True,
            atomic_numbers=torch.cat(list(numbers)),
            system_idx=owner,
        )

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Forces [n, 3], eV/Angstrom; the energies [s], which only a log would show, are zero."""
        whose, operator = self.joined(state)
        for k in whose:
            self.evaluations[k] += 1
        with torch.no_grad():
            forces = operator.forces(state.positions)
        return {"forces": forces, "energy": forces.new_zeros(len(whose))}

    def joined(self, state: Any) -> tuple[list[int], Operator]:
        """Which structures a state has, and their operator."""
        # In order and never twice, so that atoms of one structure are together.
        owners = torch.unique_consecutive(state.masses).long() - 1
        whose = owners.tolist()
        if whose != self._joined[0]:
            first, *others = (self.operators[k] for k in whose)
            self._joined = whose, first.join(others)
        return self._joined


def relax(
    name: str,
    operators: Sequence[Operator],
    starts: Sequence[Tensor],
    numbers: Sequence[Tensor],
    fmax: float,
    max_steps: int,
    budget: int,
) -> list[Ended]:
    """Relax structures with default settings, at most ``budget`` atoms together.

    Convergence is looked at after every step, where torch-sim's default is every fifth: that costs
    it next to nothing here, and saves up to four evaluations of each structure.

    Args:
        name: of ``NAMES``.
        operators, starts, numbers, fmax, max_steps: as ``with_ase.one_at_a_time``.
        budget: atoms.

    Raises:
        NotInstalled: there is no torch-sim, or none with that optimizer.
    """
    if MISSING is not None:
        not_installed("torch-sim-atomistic", MISSING)
    optimizer = _optimizer(NAMES[name])
    model = OperatorModel(operators, starts[0].dtype)
    batcher = InFlightAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=float(budget)
    )
    with warnings.catch_warnings():
        # That max_steps is reached, summed over all batches; each structure has as many all the same.
        warnings.simplefilter("ignore")
        end = torch_sim.optimize(
            model.state(starts, numbers),
            model,
            optimizer=optimizer,
            convergence_fn=partial(below, fmax),
            autobatcher=batcher,
            max_steps=max_steps,
            steps_between_swaps=1,
        )
    whose, operator = model.joined(end)
    converged, places = below(fmax, end).tolist(), end.positions.split(operator.structures.sizes)
    found = {
        k: Ended(x, model.evaluations[k], good)
        for k, x, good in zip(whose, places, converged, strict=True)
    }
    return [found[k] for k in range(len(starts))]


def below(fmax: float, state: Any, last_energy: Tensor | None = None) -> Tensor:
    """The mask [s] of structures whose longest force is below fmax (eV/Angstrom)."""
    index = state.system_idx
    return segment_max_norm(state.forces, index, int(index[-1]) + 1) < fmax


def _optimizer(name: str) -> Any:
    """What ``torch_sim.optimize`` takes for it, in this version of torch-sim."""
    known = getattr(torch_sim, "Optimizer", None)  # an enumeration in later versions
    found = (
        getattr(torch_sim.optimizers, name, None) if known is None else getattr(known, name, None)
    )
    if found is None:
        raise NotInstalled(
            f"this version of torch-sim has no {name}: it needs Python 3.12 and torch-sim-atomistic 0.5"
        )
    return found
