"""Frames for another program, such as a DFT code, and its forces read back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from fairchem_gdeq.data.names import write_extxyz
from fairchem_gdeq.data.reading import BadRows
from fairchem_gdeq.data.rows import BadRow, check_pair
from fairchem_gdeq.explore.records import Folder, Label, Record, replaced
from fairchem_gdeq.explore.starts import read_frames

MOVED = 1e-3  # Angstrom: files round positions
ADVICE = "Mend them or leave them out of the file; nothing was taken."
BY_FILE: dict[str, object] = {"calculator": "labels read from files", "options": []}


def write_frames(names: Iterable[str], folder: Folder, file: Path) -> int:
    """Write the frames without labels to an extended XYZ file; their number.

    Each has its name as ``sid``. The model's forces are not written, lest they be taken for labels.
    """
    images = [
        record.frame(k)
        for record in map(Record.load, map(folder.file, names))
        for k in np.flatnonzero(~record.labelled).tolist()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as part:
        write_extxyz(part, images)
    return len(images)


def read_labels(file: Path, folder: Folder) -> tuple[int, int]:
    """Take forces, and energies where there are any, of a file that ASE reads.

    Frames are found by their ``sid``; those that have labels already keep them.

    Returns:
        Numbers of frames that are labelled now, and of those that were already.

    Raises:
        BadRows: frames that cannot be used, each with its name and why; nothing is taken then.
        FileNotFoundError, ValueError: as ``read_frames``.
        FileExistsError: the labels in the folder are of a calculator.
    """
    images = read_frames(file)
    given, bad = _by_name(images, file)
    unknown, known, now = set(given), 0, 0
    labelled: list[Record] = []
    for _, record in folder.records():
        sids = [record.sid(k) for k in range(len(record.steps))]
        here = {k: given[sid] for k, sid in enumerate(sids) if sid in given}
        unknown -= {sids[k] for k in here}
        labels: dict[int, Label] = {}
        for k, (number, image) in here.items():
            try:
                labels[k] = label_of(image, record.frame(k), f"{file}, frame {number}, {sids[k]}")
            except BadRow as error:
                bad.append(error)
        new = {k: one for k, one in labels.items() if not record.labelled[k]}
        known, now = known + len(labels) - len(new), now + len(new)
        if new:
            labelled.append(record.with_labels(new))
    for sid in sorted(unknown):
        where = f"{file}, frame {given[sid][0]}"
        bad.append(BadRow(where, f"no frame {sid} was written from {folder.path}"))
    if bad:
        raise BadRows(str(file), bad, len(images), ADVICE)
    folder.claim("reference", BY_FILE)
    for record in labelled:
        record.save(folder.file(record.name))
    return now, known


def _by_name(images: list[Atoms], file: Path) -> tuple[dict[str, tuple[int, Atoms]], list[BadRow]]:
    """Images with their numbers in the file, and those without a name of their own."""
    given: dict[str, tuple[int, Atoms]] = {}
    bad = []
    for number, image in enumerate(images):
        where, sid = f"{file}, frame {number}", str(image.info.get("sid", ""))
        if not sid:
            bad.append(BadRow(where, "no sid in its info, which says which frame it is"))
        elif sid in given:
            bad.append(BadRow(where, f"{sid} is there twice"))
        else:
            given[sid] = number, image
    return given, bad


def label_of(image: Atoms, frame: Atoms, where: str) -> Label:
    """The label that an image has for the frame which it is called after.

    Raises:
        BadRow: it is another structure, or has no forces; names ``where`` and the difference.
    """
    check_pair(frame, image, where)
    moves = find_mic(image.positions - frame.positions, frame.cell, frame.pbc)[1]
    if not moves.max() <= MOVED:  # NaN too
        i = int(np.nan_to_num(moves, nan=np.inf).argmax())
        raise BadRow(
            where,
            f"atom {i} lies {moves[i]:.3g} Angstrom from where it was written: expected a single "
            "calculation at the frame, not a relaxation",
        )
    if image.calc is None or "forces" not in image.calc.results:
        raise BadRow(where, "no forces")
    forces = image.get_forces(apply_constraint=False)
    if not np.isfinite(forces).all():
        raise BadRow(where, "forces contain NaN or infinity")
    energy = image.calc.results.get("energy")
    if energy is not None and not np.isfinite(energy):
        raise BadRow(where, "the energy is not finite")
    return Label(forces, np.nan if energy is None else float(energy))
