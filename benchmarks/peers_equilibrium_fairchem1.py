"""The table of ``peers_equilibrium`` for the batched L-BFGS of fairchem-core 1.10, on a base of its own.

.nox/fairchem1/bin/python -m benchmarks.peers_equilibrium_fairchem1 --structures 4

It is a table of its own because it has another potential: fairchem-core 1.10 and 2 cannot be in one
environment, and neither opens the other's models. The base is a small GemNet-OC (--base takes another
one, also EquiformerV2). fairchem's optimizer gets its positions' forces from our operator and keeps its
own batch, mask and criterion. It evaluates the whole batch until the last structure has converged; such
evaluations count for all structures of the batch.

"As in its configs" has the numbers (maxstep 0.04 Angstrom, memory 50, damping 1, alpha 70 eV/Angstrom^2)
with which OC20's models are relaxed; the other row the defaults of the class.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from ase.db import connect
from fairchem.core import OCPCalculator
from fairchem.core.common.relaxation.optimizable import OptimizableBatch
from fairchem.core.common.relaxation.optimizers import lbfgs_torch
from fairchem.core.datasets import data_list_collater
from torch import Tensor
from torch_geometric.data import Batch

from benchmarks.peers.kept import Kept
from benchmarks.peers.numbers import turned
from benchmarks.peers.relaxations import (
    OURS,
    REFERENCE,
    SMALL,
    Ended,
    add_options,
    in_flight,
    kept_settings,
    print_table,
    timed,
)
from fairchem_gdeq.evaluation.task import RelaxationTask
from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.relax import LBFGS, Operator, Picard, Relaxer

ROOT = Path(__file__).parents[1]
ALPHA = 0.01  # configs/shared/slabs_fairchem1.yml
AS_CONFIGURED = {"maxstep": 0.04, "memory": 50, "damping": 1.0, "alpha": 70.0}


class OurForces(OptimizableBatch):
    """fairchem's batch of structures under way, with the forces of our operator.

    Attributes:
        evaluations: of the whole batch.
    """

    def __init__(self, batch: Batch, trainer: Any, operator: Operator) -> None:
        super().__init__(batch, trainer)
        self.operator, self.evaluations = operator, 0
        self._at: tuple[Tensor, Tensor] | None = None

    def get_forces(self, apply_constraint: bool = False, no_numpy: bool = False) -> Tensor:
        """[n, 3], eV/Angstrom; zero on fixed atoms in any case."""
        if self._at is None or not torch.equal(self._at[0], self.batch.pos):
            self.evaluations += 1
            with torch.no_grad():
                self._at = self.batch.pos.clone(), self.operator.forces(self.batch.pos)
        return self._at[1].clone()

    def _never_asked(self, *_: Any) -> Any:
        """Later versions of ASE want these of a subclass; fairchem's L-BFGS does not call them."""
        raise NotImplementedError

    ndofs = get_x = set_x = get_value = get_gradient = _never_asked


def theirs(
    batch: Batch, trainer: Any, operator: Operator, fmax: float, max_steps: int, **options: float
) -> list[Ended]:
    """fairchem-core 1.10's L-BFGS on the whole batch."""
    moving = OurForces(batch.clone(), trainer, operator)
    lbfgs_torch.LBFGS(moving, **options).run(fmax=fmax, steps=max_steps)
    places = moving.batch.pos.split(operator.structures.sizes)
    # A structure counts as converged from when it was first, as fairchem has it.
    converged = (~moving.update_mask).tolist()
    return [
        Ended(x.clone(), moving.evaluations, good)
        for x, good in zip(places, converged, strict=True)
    ]


def batch_of(base: str, structures: int) -> tuple[Any, Batch]:
    """fairchem's trainer of a base, and the first slabs of the test split."""
    calculator = OCPCalculator(checkpoint_path=base, cpu=True, seed=0)
    rows = []
    with connect(ROOT / "data/slabs/test/data.aselmdb", type="aselmdb", readonly=True) as found:
        for row in islice(found.select(), structures):
            atoms = row.toatoms()
            data = calculator.a2g.convert(atoms)
            data.sid, data.pbc = row.id, data.pbc.reshape(1, 3)
            data.masses = torch.as_tensor(atoms.get_masses(), dtype=data.pos.dtype)
            rows.append(data)
    return calculator.trainer, data_list_collater(rows, otf_graph=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--base", default=str(ROOT / "data/slabs/base/gemnet_oc.pt"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")

    trainer, batch = batch_of(arguments.base, arguments.structures)
    model = trainer._unwrapped_model.eval()

    def denorm(forces: Tensor) -> Tensor:
        return trainer.normalizers["forces"](forces) if "forces" in trainer.normalizers else forces

    field = OCPForceField.unfrozen(model, batch, denorm)
    whole = RelaxationTask(alpha=ALPHA).operator_of(field, batch)
    slow = RelaxationTask(alpha=SMALL * ALPHA).operator_of(field, batch)
    starts = list(batch.pos.split(whole.structures.sizes))
    each = torch.eye(len(starts), dtype=torch.bool)
    alone, slowly = ([operator.select(one) for one in each] for operator in (whole, slow))
    limits = {"fmax": arguments.fmax, "max_steps": arguments.max_steps}
    ours = {
        "L-BFGS, fixed guess, batched": Relaxer(0, LBFGS(softest=None), **limits),
        OURS: Relaxer(0, LBFGS(), **limits),
    }
    ways: dict[str, Callable[[], list[Ended]]] = {
        name: partial(in_flight, alone, starts, way, arguments.max_atoms)
        for name, way in ours.items()
    }
    for name, options in (("as in its configs", AS_CONFIGURED), ("its defaults", {})):
        ways[f"fairchem 1.10 L-BFGS, {name}"] = partial(
            theirs, batch, trainer, whole, **limits, **options
        )
    place = Path(arguments.folder) / f"equilibrium_fairchem1_{Path(arguments.base).stem}.jsonl"
    kept = Kept(place, kept_settings(arguments))
    far = Relaxer(0, Picard(), arguments.fmax, arguments.reference_steps)
    kept(REFERENCE, lambda: timed(partial(in_flight, slowly, starts, far, arguments.max_atoms)))
    for repeat in range(arguments.repeats):
        for way in turned(list(ways), repeat):
            kept(f"{way} #{repeat}", partial(timed, ways[way]))
    print_table(Path(arguments.base).stem, arguments, kept, ways, {}, alone)


if __name__ == "__main__":
    main()
