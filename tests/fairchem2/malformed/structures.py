"""Data sets, their rows and how they are split."""

import numpy as np
from ase.constraints import FixCartesian, FixedPlane
from ase.db import connect

from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.malformed.spoiling import (
    case,
    cut,
    database,
    forget,
    metadata,
    rewrite,
    row,
    typed,
    unknown,
)

typed("data_missing", "paths.train=PLACE/nowhere", words=("PLACE/nowhere", "no such", "data=PATH"))
typed("data_missing_test", "test=nowhere", words=("PLACE/nowhere", "no such", "data=PATH"))
typed("data_format_unknown", "format=xyz", words=("format", "xyz", "is2rs"))
typed(
    "data_in_two_splits",
    "paths.val=PLACE/train",
    words=("PLACE/train", "train", "val", "paths.val"),
)
typed("data_tested_on_val", "test=val", words=("test=val", "split=val"))
typed("data_tested_on_train", "test=train", words=("test=train", "split=train"))
typed(
    "data_in_two_splits_by_another_way",
    "paths.test=PLACE/val/../train",
    words=("train", "test", "paths.test"),
)


@case("train", "expected", ".aselmdb", "empty")
def data_folder_empty(place):
    forget(place, "train")
    (place / "train").mkdir()
    return []


@case("train", "expected", ".aselmdb", "notes.txt")
def data_folder_of_something_else(place):
    forget(place, "train")
    (place / "train").mkdir()
    (place / "train" / "notes.txt").write_text("nothing here")
    return []


@case("data.aselmdb", "cut short", "bytes of", "again")
def data_truncated(place):
    cut(database(place))
    return []


@case("data.aselmdb", "not a readable LMDB", "expected")
def data_text(place):
    database(place).write_text("H 0 0 0\n" * 400)
    return []


@case("data.aselmdb", "not a readable LMDB", "expected")
def data_empty_file(place):
    database(place).write_bytes(b"")
    return []


@case("val/data.aselmdb", "cut short", "bytes of", "again")
def data_truncated_val(place):
    cut(database(place, "val"))
    return []


@case("train", "no rows")
def data_without_rows(place):
    database(place).unlink()
    with connect(database(place), type="aselmdb") as stored:
        del stored[stored.write(small.silicon(1)[0])]
    metadata(place, natoms=np.array([], dtype=int))
    return []


@case("train/metadata.npz", "natoms", "3", "8", "remove")
def metadata_of_another_length(place):
    return metadata(place, natoms=np.array([8, 8, 8]))


@case("train/metadata.npz", "natoms", "row 2", "remove")
def metadata_of_other_sizes(place):
    return metadata(place, natoms=np.full(8, 8))


@case("train/metadata.npz", "cannot be used", "remove")
def metadata_text(place):
    (place / "train" / "metadata.npz").write_text("natoms: 8")
    return []


@case("train/metadata.npz", "cannot be used", "remove")
def metadata_truncated(place):
    cut(place / "train" / "metadata.npz")
    return []


@row("no 'pos_relaxed'", "target_key")
def row_without_target(atoms, data):
    del data["pos_relaxed"]


@row("no 'pos_relaxed'", "target_key", split="test")
def row_without_target_in_test(atoms, data):
    del data["pos_relaxed"]


@row("shape (5, 3), expected (7, 3)", "same atoms")
def row_with_another_number_of_atoms(atoms, data):
    data["pos_relaxed"] = data["pos_relaxed"][:5]


@row("pos_relaxed", "numbers")
def row_with_a_target_of_words(atoms, data):
    data["pos_relaxed"] = "as the start"


@row("start positions", "NaN or infinity")
def row_with_nan_start(atoms, data):
    atoms.positions[0, 0] = np.nan


@row("start positions", "NaN or infinity")
def row_with_infinite_start(atoms, data):
    atoms.positions[0, 0] = np.inf


@row("pos_relaxed", "NaN or infinity")
def row_with_nan_target(atoms, data):
    data["pos_relaxed"][2, 1] = np.nan


@row("pos_relaxed", "NaN or infinity", split="val")
def row_with_infinite_target_in_val(atoms, data):
    data["pos_relaxed"][2, 1] = np.inf


@row("cell", "NaN or infinity")
def row_with_nan_cell(atoms, data):
    atoms.cell[0, 0] = np.nan


@row("cell", "volume of 0")
def row_with_zero_cell(atoms, data):
    atoms.cell[:] = 0


@row("all 7 atoms are fixed", "expected")
def row_all_fixed(atoms, data):
    data["free"] = np.zeros(len(atoms), dtype=bool)


@row("one atom", "expected")
def row_of_one_atom(atoms, data):
    data["pos_relaxed"] = data["pos_relaxed"][:1]
    return atoms[:1]


@row("no atoms")
def row_of_no_atoms(atoms, data):
    data["pos_relaxed"] = np.zeros((0, 3))
    return atoms[:0]


@row("free", "shape (3,), expected (7,)")
def row_with_too_few_free(atoms, data):
    data["free"] = np.ones(3, dtype=bool)


@row("masses")
def row_with_negative_masses(atoms, data):
    data["masses"] = -np.ones(len(atoms))


@row("masses", "atom 3", "inf amu", "1e+06")
def row_with_an_infinite_mass(atoms, data):
    data["masses"] = np.where(np.arange(len(atoms)) == 3, np.inf, 28.0)


@row("masses", "atom 0", "1e+300 amu", "1e+06", split="val")
def row_with_huge_masses(atoms, data):
    atoms.set_masses(np.full(len(atoms), 1e300))


@row("FixedPlane", "dropped", "Use FixAtoms")
def row_with_a_plane(atoms, data):
    atoms.set_constraint(FixedPlane([0], (0, 0, 1)))


@row("FixCartesian (of some directions)", "Use FixAtoms", split="test", mode="predict")
def row_with_a_direction(atoms, data):
    atoms.set_constraint(FixCartesian([0], (True, False, False)))


@row("free", "real numbers", "text")
def row_free_in_words(atoms, data):
    data["free"] = ["no"] * len(atoms)


@row("free is nan for atom 0", "true or false")
def row_free_or_nan(atoms, data):
    data["free"] = np.full(len(atoms), np.nan)


@row("complex numbers", "real ones")
def row_with_complex_positions(atoms, data):
    atoms.arrays["positions"] = atoms.positions + 0.1j


@row("pos_relaxed", "complex numbers")
def row_with_a_complex_target(atoms, data):
    data["pos_relaxed"] = data["pos_relaxed"] + 0.1j


@case("data.aselmdb", "row 2", "name (sid)", r"'a\nb ", mode="predict")
def row_with_a_name_of_two_lines(place):
    rewrite(place, lambda atoms, data: data.update(sid='a\nb "c" =d'), "test")
    return []


@case("data.aselmdb", "row 2", "name (sid)", "names nothing")
def row_with_an_empty_name(place):
    rewrite(place, lambda atoms, data: data.update(sid=""))
    return []


@case("data.aselmdb", "row 2", "name (sid)", "or a number", "a list")
def row_with_a_list_of_names(place):
    rewrite(place, lambda atoms, data: data.update(sid=["a", "b"]))
    return []


@unknown("split train")
def row_of_an_unknown_element(atoms, data):
    atoms.numbers[2] = 100


@unknown("split test", split="test")
def row_of_an_unknown_element_in_test(atoms, data):
    atoms.numbers[2] = 100


@row("atomic numbers from 0")
def row_of_no_element(atoms, data):
    atoms.numbers[2] = 0


@row("atoms 0 and 3", "same place", "start")
def row_with_atoms_at_one_place(atoms, data):
    atoms.positions[3] = atoms.positions[0]


@row("atoms 0 and 3", "same place", "pos_relaxed")
def row_with_target_atoms_at_one_place(atoms, data):
    data["pos_relaxed"][3] = data["pos_relaxed"][0]


@row("pos_relaxed", "Angstrom", "1e+06")
def row_with_a_target_far_away(atoms, data):
    data["pos_relaxed"][0] += 1e6


typed(
    "target_key_unknown",
    "test_target_key=relaxed",
    words=("no 'relaxed'", "test/data.aselmdb", "target_key"),
)
typed("target_key_null", "test_target_key=null", words=("test_target_key=null", "mode=train"))
typed(
    "batch_too_small", "eval_max_atoms=7", words=("split val", "(7)", "up to 8", "eval_max_atoms")
)
typed(
    "no_training_batch",
    "max_atoms=5",
    words=("max_atoms=5", "none of 8 training structures", "Raise max_atoms"),
)
