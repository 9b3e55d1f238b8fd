"""Labelled frames, and files of reference forces."""

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixedPlane

from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.malformed.spoiling import (
    case,
    cut,
    database,
    forget,
    labelled,
    metadata,
    rewrite,
    typed,
)

typed("frames_missing", "forces.src=PLACE/none", words=("PLACE/none", "forces.src=none"))
typed("frames_missing_val", "forces.val=PLACE/none", words=("PLACE/none", "forces.val=null"))


@labelled("frame1", "no forces")
def frame_without_forces(forces):
    return None


@labelled("frame1", "not finite")
def frame_with_nan(forces):
    forces[0, 0] = np.nan
    return forces


@labelled("frame1", "not finite", split="val_frames")
def frame_with_nan_in_val(forces):
    forces[0, 0] = np.nan
    return forces


@labelled("frame1", "no forces", split="val_frames")
def frame_without_forces_in_val(forces):
    return None


@labelled("frame number 1", "cannot be read", "expected")
def frame_with_too_few_forces(forces):
    return forces[:4]


@labelled("frame1", "1e+06", "eV/Angstrom")
def frame_with_absurd_forces(forces):
    forces[0, 0] = 1e6
    return forces


def planes(atoms, data):
    forces = atoms.get_forces()
    atoms.set_constraint(FixedPlane([0], (0, 0, 1)))
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    return atoms


@case("PLACE/train_frames", "frame number 1", "frame1", "FixedPlane", "Use FixAtoms")
def frame_with_a_plane(place):
    rewrite(place, planes, "train_frames")
    return []


@case("PLACE/val_frames", "frame number 1", "frame1", "FixedPlane", "Use FixAtoms")
def frame_with_a_plane_in_val(place):
    rewrite(place, planes, "val_frames")
    return []


@case("frames", "frame1", "Fm (atomic number 100)", "up to 99 (Es)")
def frame_of_an_unknown_element(place):
    def change(atoms, data):
        forces = atoms.get_forces()
        atoms.numbers[2] = 100
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
        return atoms

    rewrite(place, change, "train_frames")
    return []


@case("frames", "frame1", "Fm (atomic number 100)", "up to 99 (Es)")
def frame_of_an_unknown_element_in_val(place):
    def change(atoms, data):
        forces = atoms.get_forces()
        atoms.numbers[2] = 100
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
        return atoms

    rewrite(place, change, "val_frames")
    return []


@case("frames", "X_0 of row0 in split val", "leave these frames out")
def frames_of_val(place):
    small.write_frames(place / "more", small.silicon(3, 1))
    return [f"forces.src=[{place}/train_frames,{place}/more]"]


@case("train_frames", "expected", ".aselmdb")
def frames_folder_empty(place):
    forget(place, "train_frames")
    (place / "train_frames").mkdir()
    return []


@case("train_frames", "data.aselmdb", "cut short")
def frames_truncated(place):
    cut(database(place, "train_frames"))
    return []


@case("train_frames", "data.aselmdb", "not a readable LMDB")
def frames_text(place):
    database(place, "train_frames").write_text("no frames\n" * 1000)
    return []


@case("train_frames", "expected", "metadata.npz", "size 2")
def frames_metadata_of_another_length(place):
    return metadata(place, "train_frames", natoms=np.array([8, 8]))


# ---- the reference -----------------------------------------------------------------------------

typed("reference_missing", "reference=PLACE/no.extxyz", words=("PLACE/no.extxyz", "no such file"))


@case("reference", "dft.extxyz", "cannot be read", "expected")
def reference_text(place):
    (place / "dft.extxyz").write_text("forces are in the appendix\n")
    return [f"reference={place}/dft.extxyz"]


def reference_frames(place, count, change=lambda atoms: None):
    import ase.io

    images = small.silicon(3, 2)[:count]
    for number, atoms in enumerate(images):
        atoms.info["sid"] = f"row{number}"
        change(atoms)
        atoms.calc = SinglePointCalculator(atoms, forces=np.zeros((len(atoms), 3)))
    ase.io.write(place / "dft.extxyz", images)
    return [f"reference={place}/dft.extxyz"]


@case("dft.extxyz", "no structure row2", "row0, row1")
def reference_incomplete(place):
    return reference_frames(place, 2)


@case("dft.extxyz", "no structure row2", "row0, row1", mode="validate")
def reference_incomplete_when_validating(place):
    return reference_frames(place, 2)


@case("dft.extxyz", "has other atoms", "sort them back")
def reference_of_other_atoms(place):
    return reference_frames(place, 3, lambda atoms: atoms.symbols.__setitem__(0, "C"))


@case("dft.extxyz", "frame 0 has no sid")
def reference_without_names(place):
    return reference_frames(place, 3, lambda atoms: atoms.info.clear())


typed(
    "reference_unknown",
    "reference={_target_: ase.calculators.none.None}",
    words=("runner.reference", "'ase.calculators.none.None'", "expected"),
)
typed(
    "reference_of_another_kind", "reference={_target_: builtins.dict}", words=("reference", "dict")
)
