"""How one input is spoilt, and the list of all that are."""

import shutil
from typing import NamedTuple

import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect


class Case(NamedTuple):
    """How one input is spoilt, in which mode it is used, and words of the last line."""

    spoil: object
    mode: str
    words: tuple


CASES = {}


def case(*words, mode="train"):
    """A function that spoils a folder, as a case of its name."""

    def known(spoil):
        CASES[spoil.__name__] = Case(spoil, mode, words)
        return spoil

    return known


def typed(name, *options, words, mode="train"):
    """A case in which nothing is wrong but what is typed; PLACE is the folder of inputs."""
    CASES[name] = Case(lambda place: [o.replace("PLACE", str(place)) for o in options], mode, words)


# ---- one part of the inputs, spoilt ----------------------------------------------------------


def database(place, split="train"):
    return place / split / "data.aselmdb"


def cut(path, share=0.5):
    """A file that ends too early."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def rewrite(place, change, split="train"):
    """The rows of a split again; ``change`` has row 1, its atoms, its data and its forces."""
    path = database(place, split)
    with connect(path, type="aselmdb") as stored:
        rows = [(row.toatoms(), dict(row.data)) for row in stored.select()]
    path.unlink()
    (place / split / "data.aselmdb-lock").unlink(missing_ok=True)
    sizes = []
    with connect(path, type="aselmdb") as stored:
        for number, (atoms, data) in enumerate(rows):
            if number == 1:
                found = change(atoms, data)
                atoms = atoms if found is None else found  # one without atoms is false
            stored.write(atoms, data=data)
            sizes.append(len(atoms))
    np.savez(place / split / "metadata.npz", natoms=np.array(sizes))


def row(*words, split="train", mode="train"):
    """A case of a row: the function changes atoms in place, or returns others."""

    def known(change):
        def spoil(place):
            rewrite(place, change, split)
            return []

        spoil.__name__ = change.__name__
        return case("data.aselmdb", "row 2", "row1", *words, mode=mode)(spoil)

    return known


def unknown(*words, split="train"):
    """As ``row``, of an element that the model does not know: the data set has nothing against it."""

    def known(change):
        row(split=split)(change)
        made = CASES[change.__name__]
        words_of = (*words, "row1 (row 1)", "Fm (atomic number 100)", "up to 99 (Es)")
        CASES[change.__name__] = made._replace(words=words_of)
        return change

    return known


def labelled(*words, split="train_frames"):
    """A case of a frame: the function changes forces [n, 3] in place, or returns others."""

    def known(change):
        def relabel(atoms, data):
            forces = atoms.get_forces()
            found = change(forces)
            atoms.calc = None
            if found is not None:
                atoms.calc = SinglePointCalculator(atoms, energy=0.0)
                atoms.calc.results["forces"] = found
            return atoms

        def spoil(place):
            rewrite(place, relabel, split)
            return []

        spoil.__name__ = change.__name__
        return case(f"frames PLACE/{split}", *words)(spoil)

    return known


def stored(place, change, name="esen.pt"):
    """A checkpoint again, of which something has been changed."""
    found = torch.load(place / name, weights_only=False)
    torch.save(change(found) or found, place / name)
    return []


def metadata(place, split="train", **arrays):
    np.savez(place / split / "metadata.npz", **arrays)
    return []


def forget(place, name):
    target = place / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
