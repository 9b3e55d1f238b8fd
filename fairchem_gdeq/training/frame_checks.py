"""Labelled frames that cannot teach what is meant, refused before a run computes anything for long.

Of both fairchem lines: structures are ASE's, forces are arrays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fairchem_gdeq.data.overlap import NEAR, SAME, Named, find_overlaps

SAMPLE = 64  # frames on which labels are compared with the base's forces
FEWEST = 30  # components of forces from which a correlation means something
# Rank correlations of the labels with the base's forces. The shipped bases have 0.72 (eSEN) and 0.69
# (ADAPT) on the silicon frames and 0.89 on the slabs, with ratios from 1.01 to 1.11.
ALIKE, UNLIKE = 0.5, 0.3
FAR = 4.0  # ratio of both from which a unit is doubted
# eV/Angstrom in one of it.
UNITS = {
    "Hartree/Bohr": 51.4221,
    "Rydberg/Bohr": 25.7110,
    "kcal/mol/Angstrom": 0.0433641,
    "kJ/mol/Angstrom": 0.0103643,
    "meV/Angstrom": 0.001,
}
SHOWN = 3  # pairs that a message names
LOOKED_AT = 20_000  # rows of a data set; of larger ones so many, evenly spread: it takes a minute
NO_FORCES = "none"


def looked_at(count: int) -> list[int]:
    """Which rows of a data set of so many are checked: all, or of a large one ``LOOKED_AT``."""
    if count <= LOOKED_AT:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, LOOKED_AT).round()]


def given_settings(
    src: str | Sequence[str] | None, given: Mapping[str, float | None]
) -> dict[str, float] | None:
    """The settings of force training that a config gives; None where there is no such training.

    Args:
        src: where forces come from. None: from nowhere, so nothing may be given; ``none``: they are
            switched off, whatever is given.
        given: settings by name; None is their default.

    Raises:
        ValueError: settings of force training that has no forces.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if src == NO_FORCES:
        return None
    if src is None and chosen:
        said = ", ".join(f"forces.{name}={value}" for name, value in chosen.items())
        raise ValueError(
            f"{said}, and there are no forces to train on (forces.src=null). Name frames with "
            "forces.src=FOLDER, take the base's own with forces.src=base, or switch force training off "
            f"with forces.src={NO_FORCES}"
        )
    return None if src is None else chosen


class Agreement(NamedTuple):
    """How labels compare with the base's forces.

    Attributes:
        correlation: of the components' ranks, in [-1, 1].
        ratio: of labels to the base's forces; negative where they point the other way.
        components: number of them, all of free atoms.
    """

    correlation: float
    ratio: float
    components: int


def agreement(predicted: NDArray[np.float64], labels: NDArray[np.float64]) -> Agreement:
    """Compare labels [n, 3] with the base's forces [n, 3] on free atoms, both as given.

    The ratio is the slope through zero of least absolute deviations, which no outlier decides: the
    median of the quotients, weighted with the base's forces.
    """
    base, given = np.ravel(predicted).astype(float), np.ravel(labels).astype(float)
    some = (base != 0) & np.isfinite(base) & np.isfinite(given)
    base, given = base[some], given[some]
    if len(base) < 2 or np.ptp(base) == 0 or np.ptp(given) == 0:
        return Agreement(0.0, 0.0, len(base))
    quotients = given / base
    order = np.argsort(quotients)
    reached = np.cumsum(np.abs(base[order]))
    ratio = float(quotients[order][np.searchsorted(reached, reached[-1] / 2)])
    return Agreement(float(spearmanr(base, given).statistic), ratio, len(base))


def unit_of(ratio: float) -> tuple[str, float] | None:
    """The unit in which labels would be so many times the base's forces, and its eV/Angstrom."""
    name = min(UNITS, key=lambda unit: abs(np.log(abs(ratio) * UNITS[unit])))
    near = abs(np.log(abs(ratio) * UNITS[name])) < np.log(1.4)
    return (name, UNITS[name]) if near else None


def require_unit(found: Agreement, source: str) -> None:
    """Refuse labels that are the base's forces in another unit, or with the other sign.

    Labels that have little to do with the base's forces are said: the base may be that poor.

    Raises:
        ValueError: says the ratio and which unit it looks like.
    """
    if found.components < FEWEST:
        return
    strength = abs(found.correlation)
    size = abs(found.ratio)
    far = not 1 / FAR <= size <= FAR
    text = (
        f"frames {source}: their forces are {found.ratio:.3g} times those of the base (rank correlation "
        f"{found.correlation:.2f} over {found.components} components)"
    )
    if strength >= ALIKE and (far or found.ratio < 0):
        looks, do = [], []
        if found.ratio < 0:
            looks.append("gradients of the energy, which are minus the forces")
            do.append("change their sign")
        if far and (unit := unit_of(found.ratio)):
            looks.append(f"in {unit[0]}")
            do.append(f"multiply them by {unit[1]:.5g}")
        said = f". They look like {' '.join(looks)}" if looks else ", as in no common unit"
        advice = f": {' and '.join(do)}" if do else ""
        raise ValueError(f"{text}{said}. Expected forces in eV/Angstrom{advice}")
    if strength < UNLIKE or far or found.ratio < 0:
        logging.warning(
            f"{text}. Expected forces of much the same atoms, so check that the base is for such "
            "structures and that the labels are forces in eV/Angstrom"
        )


def unknown_element(numbers: Iterable[int], limit: int) -> str | None:
    """What to say of a structure of these atomic numbers, of which a model knows those below a limit."""
    worst = max(numbers, default=0)
    if worst < limit:
        return None
    return (
        f"has {_symbol(worst)} (atomic number {worst}), and the model knows elements up to "
        f"{limit - 1} ({_symbol(limit - 1)}). Leave such structures out, or take a base that knows it"
    )


class Elements:
    """Which elements the frames have, to be compared with what a model and a run know."""

    def __init__(self, source: str, limit: int | None = None) -> None:
        """
        Args:
            source: what a message calls the frames.
            limit: first atomic number that the model does not know; None: it has no such limit.
        """
        self.source, self.limit = source, limit
        self.found: set[int] = set()

    def add(self, frame: Named) -> None:
        """Take a frame in.

        Raises:
            ValueError: it has an element that the model does not know; says which.
        """
        numbers = {int(number) for number in np.unique(frame.atoms.numbers)}
        if self.limit is not None and (text := unknown_element(numbers, self.limit)):
            raise ValueError(f"frames {self.source}: {frame.name} {text}")
        self.found |= numbers

    def compare(self, trained: Iterable[int]) -> None:
        """Say where frames and training structures, by their atomic numbers, do not belong together."""
        wanted = set(trained)
        if not wanted & self.found:
            logging.warning(
                f"frames {self.source}: they are of {_symbols(self.found)}, and the training structures "
                f"of {_symbols(wanted)}: no element is in both, so these frames keep nothing right there"
            )
        elif missing := wanted - self.found:
            logging.warning(
                f"frames {self.source}: none has {_symbols(missing)}, which training structures have. "
                "Forces on these elements are held by nothing; add frames with them"
            )


def require_no_overlap(frames: Iterable[Named], held: Iterable[Named], source: str) -> None:
    """Refuse frames that are structures of a held-out split, whatever they are called.

    Raises:
        ValueError: counts and names them.
    """
    near = list(find_overlaps(frames, held, NEAR))
    same = [each for each in near if each.distance <= SAME]
    if same:
        pairs = "; ".join(f"{each.frame} is {each.held}" for each in same[:SHOWN])
        raise ValueError(
            f"frames {source}: {len({each.frame for each in same})} of them are structures that are held "
            f"out, atom by atom: {pairs}{'; ...' if len(same) > SHOWN else ''}. Scores would be of what "
            "was trained on: leave these frames out"
        )
    if near:
        logging.info(
            f"frames {source}: {len({each.frame for each in near})} are within {NEAR} Angstrom of "
            f"{len({each.held for each in near})} held-out structures, such as {near[0].frame} of "
            f"{near[0].held}: minima that other starts lead to as well"
        )


def _symbol(number: int) -> str:
    return chemical_symbols[number] if number < len(chemical_symbols) else f"element {number}"


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(_symbol(number) for number in sorted(numbers)) or "nothing"
