"""The five terms of RelaxNet's loss (eq. 7), each on its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax import Structures
from fairchem_gdeq.relax.segments import segment_sum
from fairchem_gdeq.relaxnet.dynamics import Path

DELTA = 1e-8  # Angstrom: delta of eq. 7
MOVED = 1e-3  # Angstrom: atoms that move farther than that are M of eq. 7


@dataclass(frozen=True)
class Reference:
    """A trajectory's frames.

    Attributes:
        positions: [T, n, 3], Angstrom, as far from the start as atoms have gone: not wrapped.
        energies: [T, s], eV.
        forces: [T, n, 3], eV/Angstrom.
    """

    positions: Tensor
    energies: Tensor
    forces: Tensor


@dataclass(frozen=True)
class RelaxNetLoss:
    """Weights of the terms, lambda_1 ... lambda_5 of eq. 7; a term with weight 0 is off.

    Attributes:
        energy: 1/eV.
        monotonic: 1/eV.
        forces: (Angstrom/eV)^2.
        positions: 1/Angstrom^2.
        direction: a pure number.
    """

    energy: float = 0.1
    monotonic: float = 0.1
    forces: float = 0.1
    positions: float = 200.0
    direction: float = 1.0

    def __call__(
        self, path: Path, reference: Reference, structures: Structures
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and each term by its name, without its weight."""
        terms = {
            "energy": energy_term(path.energies, reference.energies),
            "monotonic": monotonic_term(path.energies),
            "forces": square_term(path.forces, reference.forces, structures),
            "positions": square_term(path.positions, reference.positions, structures),
            "direction": direction_term(path.positions, reference.positions, structures),
        }
        weighted = [getattr(self, name) * term for name, term in terms.items()]
        return torch.stack(weighted).sum(), terms


def energy_term(predicted: Tensor, true: Tensor) -> Tensor:
    """Term 1: the mean of |E - E^| over frames and structures, of [T, s] in eV."""
    return (predicted - true).abs().mean()


def monotonic_term(predicted: Tensor) -> Tensor:
    """Term 2: the mean rise of the energy from a frame to the next, of [T, s] in eV; falls count 0."""
    return predicted.diff(dim=0).relu().mean()


def square_term(predicted: Tensor, true: Tensor, structures: Structures) -> Tensor:
    """Terms 3 and 4: the mean of squares over frames, structures and coordinates, of [T, n, 3].

    N is the number of a structure's free atoms; fixed ones have no part in it.
    """
    s = structures
    squares = ((predicted - true) ** 2).mean((0, 2)) * s.free
    number = segment_sum(s.free.to(squares), s.batch, s.count).clamp_min(1)
    return (segment_sum(squares, s.batch, s.count) / number).mean()


def direction_term(predicted: Tensor, true: Tensor, structures: Structures) -> Tensor:
    """Term 5: 1 - cos between the true and the predicted displacement of an atom, weighted by the length
    of the true one, from the first to the last frame of [T, n, 3].

    M is the free atoms that truly move by more than ``MOVED``. An atom that is predicted not to move has
    the cosine 0.
    """
    move, guess = (each[-1] - each[0] for each in (true, predicted))
    length: Tensor = torch.linalg.vector_norm(move, dim=-1)
    # The root of a small number more has a derivative at rest, where an untrained model begins.
    guessed = (guess.square().sum(-1) + DELTA**2).sqrt()
    cosine = (move * guess).sum(-1) / (length.clamp_min(DELTA) * guessed)
    weight = length * (structures.free & (length > MOVED))
    return (weight * (1 - cosine)).sum() / (weight.sum() + DELTA)
