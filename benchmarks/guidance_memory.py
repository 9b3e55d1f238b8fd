"""Peak memory and time of the guidance gradient of a fairchem 2 base against the horizon K (``peaks``).

python -m benchmarks.guidance_memory                    # 216 atoms, the shipped eSEN base
python -m benchmarks.guidance_memory --structure divac1_648 --sweep 5 20 --stored
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ase.db import connect
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.units.mlip_unit.utils import load_inference_model, load_tasks

from benchmarks import peaks
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.task import IS2RS

ROOT = Path(__file__).parents[1]


def case_of(arguments: argparse.Namespace) -> peaks.Case:
    """The base on one of the larger silicon structures."""
    base = arguments.base
    model = hydra_model(load_inference_model(base, return_checkpoint=False)).eval()
    with connect(ROOT / "data/si/large/data.aselmdb", type="aselmdb", readonly=True) as rows:
        atoms = next(r for r in rows.select() if r.data["sid"] == arguments.structure).toatoms()
    batch = atomicdata_list_to_batch([AtomicData.from_ase(atoms, task_name="si")])
    return model, IS2RS().operator(model, load_tasks(base), batch), batch.pos


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "data/si/base/esen.pt"))
    parser.add_argument("--structure", default="vac_216", help="sid in data/si/large")
    peaks.run(parser, case_of)
