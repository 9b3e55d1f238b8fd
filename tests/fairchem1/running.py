"""A trainer of fairchem's own making on a small random model and a few slabs, for tests of its parts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from ase import Atoms
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, new_trainer_context

from fairchem_gdeq.fairchem1 import GDEQTrainer
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem1 import small1

ROOT = Path(__file__).parents[2]
KIND = "equiformer_v2"
RMSD = 1.5  # of the base's normalizer


@contextmanager
def trainer_on(folder: Path, *options: str) -> Iterator[GDEQTrainer]:
    """Writes inputs into an empty folder; tests leave the trainer as it was."""
    small1.write_data(folder, {"train": 4, "val": 1, "test": 1})
    small1.checkpoint(folder / f"{KIND}.pt", KIND)
    shared = ROOT / "configs" / "shared" / "finetune_fairchem1.yml"
    config = {"includes": [str(shared)], **small1.config(folder, KIND)}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    known = ["--mode", "train", "--cpu", "--run-dir", str(folder / "run")]
    known += ["--config-yml", str(folder / "config.yml"), *options]
    gc.collect()  # LMDB files of a run before this one
    distutils.setup_env_local()
    parsed = flags.get_parser().parse_known_args(known)
    with new_trainer_context(config=build_config(*parsed)) as context:
        yield context.trainer


def slabs(count: int, first: int) -> list[Atoms]:
    """Random slabs without targets, by consecutive seeds."""
    found = [pyg.slab(first + i) for i in range(count)]
    for atoms in found:
        del atoms.info["pos_relaxed"]
    return found
