"""On frames with forces: errors of forces, whether they sum to zero, and what became of energies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from fairchem_gdeq.audit.rows import NEITHER, Row, not_made, paired
from fairchem_gdeq.audit.sample import Frame, Sample, relaxation_of
from fairchem_gdeq.data.rows import free_atoms

FORCES, NET, ENERGIES = "forces", "net force", "energies"
# A potential: the forces [n, 3] of each structure, eV/Angstrom.
Forces = Callable[[Sequence[Atoms]], list[NDArray[np.float64]]]
LARGE = 1.0  # eV/Angstrom: labels above are of atoms far from equilibrium


def frame_rows(
    sample: Sample[Frame], base: Sequence[NDArray[np.float64]], tuned: Sequence[NDArray[np.float64]]
) -> list[Row]:
    """Force errors and net forces.

    Args:
        sample: frames of all ranks.
        base, tuned: forces [n, 3] of each model on each of them, eV/Angstrom.
    """
    frames, groups = sample.items, [relaxation_of(frame.name) for frame in sample.items]
    if not frames:
        why = (
            sample.remark or "There are no frames with forces: name some with audit.frames=FOLDER."
        )
        return [not_made(FORCES, "error", why), not_made(NET, "per atom", why)]
    remark = f"Frames of one relaxation count as one: {len(frames)} frames. {sample.remark}".strip()

    def of(value: Callable[[Frame, NDArray[np.float64]], float]) -> list[list[float]]:
        return [
            [value(*each) for each in zip(frames, forces, strict=True)] for forces in (base, tuned)
        ]

    net = of(lambda frame, forces: net_force(forces))
    labels = float(np.mean([net_force(frame.forces) for frame in frames]))
    summed = f"|sum of forces| / n, fixed atoms too. The labels have {labels:.2g}."
    return [
        paired(FORCES, "error", "eV/Å", of(force_error), groups=groups, remark=remark),
        _some("error, small forces", of(partial(_error_where, False)), groups, "at most"),
        _some("error, large forces", of(partial(_error_where, True)), groups, "above"),
        paired(NET, "per atom", "eV/Å", net, groups=groups, remark=summed),
    ]


def force_error(frame: Frame, forces: NDArray[np.float64]) -> float:
    """Mean absolute error of a force component of free atoms, eV/Angstrom."""
    return _mean(np.abs(forces - frame.forces)[free_atoms(frame.atoms)])


def net_force(forces: NDArray[np.float64]) -> float:
    """|sum of forces [n, 3]| / n, eV/Angstrom."""
    return float(np.linalg.norm(forces.sum(0)) / len(forces))


def energy_rows(
    frames: Sequence[Frame],
    base: Sequence[float] | None,
    tuned: Sequence[float] | None,
) -> list[Row]:
    """What tuning did to energies that the models predict: forces alone are tuned.

    Args:
        frames: those.
        base, tuned: energy of each, eV; None where the models predict none.
    """
    if base is None or tuned is None:
        return [not_made(ENERGIES, "drift", "The models predict forces alone.")]
    if not frames:
        return [not_made(ENERGIES, "drift", "There are no frames to measure it on.")]
    groups = [relaxation_of(frame.name) for frame in frames]
    atoms = np.array([len(frame.atoms) for frame in frames])
    labels = [np.nan if frame.energy is None else frame.energy for frame in frames]
    moved = np.abs(np.array(tuned) - np.array(base)) / atoms
    errors = [np.abs(_differences(np.array(of) - labels, groups)) / atoms for of in (base, tuned)]
    return [
        paired(
            ENERGIES,
            "drift from the base",
            "eV/atom",
            [np.zeros(len(frames)), moved],
            good=NEITHER,
            groups=groups,
            remark="|E(tuned) - E(base)| / n.",
        ),
        paired(
            ENERGIES,
            "error of differences",
            "eV/atom",
            errors,
            groups=groups,
            remark="Of a frame and the mean of its relaxation, which no shift of a composition changes.",
        ),
    ]


def _differences(values: NDArray[np.float64], groups: Sequence[str]) -> NDArray[np.float64]:
    """Values less the mean of their group; NaN for a group of one."""
    out = np.full(len(values), np.nan)
    names = np.array(groups)
    for name in dict.fromkeys(groups):
        members = names == name
        if members.sum() > 1:
            out[members] = values[members] - values[members].mean()
    return out


def _error_where(large: bool, frame: Frame, forces: NDArray[np.float64]) -> float:
    """The error of free atoms whose label is large, or of the others; NaN where there are none."""
    chosen = free_atoms(frame.atoms) & ((np.linalg.norm(frame.forces, axis=1) > LARGE) == large)
    return _mean(np.abs(forces - frame.forces)[chosen])


def _some(name: str, values: list[list[float]], groups: list[str], word: str) -> Row:
    """``paired`` of the frames that have such atoms, without a word on the others."""
    remark = f"Of atoms whose label is {word} {LARGE:g} eV/Å."
    there = [i for i, value in enumerate(values[0]) if np.isfinite(value)]
    some = [[each[i] for i in there] for each in values]
    return paired(FORCES, name, "eV/Å", some, groups=[groups[i] for i in there], remark=remark)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
