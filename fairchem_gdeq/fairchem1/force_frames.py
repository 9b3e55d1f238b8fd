"""Labelled frames of fairchem 1: how they are opened, and what is read of them beside a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from glob import glob
from typing import Any

import ase
import lmdb
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.ase_datasets import AseAtomsDataset
from fairchem.core.datasets.base_dataset import Subset, create_dataset
from torch import nn
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from fairchem_gdeq.data.frames import for_fairchem
from fairchem_gdeq.data.legacy import LegacySource
from fairchem_gdeq.data.reading import read_row
from fairchem_gdeq.data.rows import BadRow
from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.fairchem1.splits import LMDB_FORMATS
from fairchem_gdeq.training.force_errors import Compared, compared
from fairchem_gdeq.training.frame_checks import looked_at
from fairchem_gdeq.training.preflight import no_frames
from fairchem_gdeq.training.replay import require_forces

CHECKED = "forces_lmdb"
FORMATS = ("ase_db", *LMDB_FORMATS)
# On the command line, what a run does without frames with; None is fairchem 1's spelling of null.
WITHOUT = {"src": "none", "val": "None"}


def open_frames(src: str | Sequence[str], form: str = "ase_db", key: str = "src") -> Subset:
    """Frames as fairchem opens them for force training.

    Args:
        src: folder, or folders.
        form: one of ``FORMATS``.
        key: that of the section ``forces`` which names them, for messages.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: some have no forces, or no finite ones; says which. Or their files are those of
            another data set of the run.
    """
    folders = [src] if isinstance(src, str) else list(src)
    for folder in folders:
        if not glob(folder):
            raise FileNotFoundError(no_frames(folder, f"--task.forces.{key}", WITHOUT[key]))
    config = {
        "format": form if form == "ase_db" else CHECKED,
        "src": src if isinstance(src, str) else folders,
        "a2g_args": {"r_forces": True},
    }
    try:
        frames = create_dataset(config, "train")
    except lmdb.Error as error:
        if "already open" not in str(error):
            raise
        raise ValueError(
            f"frames {', '.join(folders)}: another data set of this run is in the same files ({error}). "
            "Scores would be of what was trained on, so frames to train on, frames held out and splits "
            f"must be different files: name others with --task.forces.{key}=FOLDER, or do without "
            f"them: --task.forces.{key}={WITHOUT[key]}"
        ) from error
    frames.dataset.atoms_transform = for_fairchem
    require_forces(_labels(frames.dataset), folders)
    return frames


class Rows:
    """A data set of fairchem 1 as ``run_frames`` reads it."""

    def __init__(self, rows: Dataset[Data]) -> None:
        self.rows: Any = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """A structure as a batch of one."""
        row = self.rows[index].clone()
        row.sid = str(row.sid)  # a batch makes a tensor of whole numbers
        row.pbc = row.pbc.view(1, 3)  # fairchem 1 has [3]
        return collated([row])


def collated(rows: list[Data]) -> Batch:
    """Structures as a batch for a model that builds its graph itself."""
    return data_list_collater(rows, otf_graph=True)


def compared_with(
    model: nn.Module,
    field_of: Callable[[nn.Module, Batch], OCPForceField],
    batches: Iterable[Batch],
    device: torch.device,
) -> Iterator[Compared]:
    """Batches of frames beside a model's forces on a device.

    Args:
        model: goes to the device.
        field_of: the model on a batch as an unfrozen field on the device.
        batches: with ``forces`` [n, 3], eV/Angstrom.
        device: where.
    """
    model = model.to(device)
    for each in batches:
        batch = each.to(device)
        with torch.no_grad():
            predicted = field_of(model, batch)(batch.pos)
        yield compared(batch, predicted, batch.forces)


def _labels(frames: AseAtomsDataset) -> Iterator[tuple[object, Any]]:
    """Name and forces of each frame, None where it has none.

    Raises:
        ValueError: one that ``for_fairchem`` refuses.
    """
    for index in (frames.ids[place] for place in looked_at(len(frames.ids))):
        atoms = frames.get_atoms(index)
        try:
            for_fairchem(atoms)
        except BadRow as error:
            raise ValueError(f"frames {frames.config['src']}, {error}") from error
        known = {} if atoms.calc is None else atoms.calc.results
        yield atoms.info.get("sid", index), known.get("forces")


@registry.register_dataset(CHECKED)
class ForceFrames(AseAtomsDataset):
    """S2EF LMDBs of OC20 and OC22, read without running what their pickles ask for (``LegacySource``)."""

    def _load_dataset_get_ids(self, config: dict[str, Any]) -> list[int]:
        self.source = LegacySource(config["src"], target_key=None)
        return list(range(len(self.source)))

    def get_atoms(self, idx: int) -> ase.Atoms:
        """A frame.

        Raises:
            BadRow: the record cannot be used; says which and why.
        """
        return read_row(self.source, idx)
