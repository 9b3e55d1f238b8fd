"""Peak memory and time of the guidance gradient of a fairchem 1 base against the horizon K (``peaks``).

python -m benchmarks.guidance_memory_fairchem1 --sweep 5 140 --stored 5 --repeats 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from ase.db import connect
from fairchem.core import OCPCalculator
from fairchem.core.datasets import data_list_collater

from benchmarks import peaks
from fairchem_gdeq.evaluation.task import RelaxationTask
from fairchem_gdeq.fairchem1.fields import OCPForceField

ROOT = Path(__file__).parents[1]


def case_of(arguments: argparse.Namespace) -> peaks.Case:
    """The base, opened by plain fairchem, on the first slab of the test set, repeated."""
    calculator = OCPCalculator(checkpoint_path=arguments.base, cpu=True, seed=0)
    trainer = calculator.trainer
    with connect(ROOT / "data/slabs/test/data.aselmdb", type="aselmdb", readonly=True) as rows:
        atoms = next(iter(rows.select())).toatoms().repeat((arguments.repeat, arguments.repeat, 1))
    data = calculator.a2g.convert(atoms)
    data.sid, data.pbc = "slab", data.pbc.reshape(1, 3)
    batch = data_list_collater([data], otf_graph=True)
    batch.masses = torch.as_tensor(atoms.get_masses(), dtype=batch.pos.dtype)
    model = trainer._unwrapped_model.eval()

    def denorm(forces: torch.Tensor) -> torch.Tensor:
        return trainer.normalizers["forces"](forces) if "forces" in trainer.normalizers else forces

    field = OCPForceField.frozen(model, batch, denorm)
    task = RelaxationTask(alpha=0.01)  # as configs/shared/slabs_fairchem1.yml
    return model, task.operator_of(field, batch), batch.pos


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "data/slabs/base/gemnet_oc.pt"))
    parser.add_argument("--repeat", type=int, default=2, help="times along each direction")
    peaks.run(parser, case_of)
