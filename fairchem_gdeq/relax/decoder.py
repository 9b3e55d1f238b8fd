"""A step size that a small network decodes from structure and forces (BPTT paper, appendix B)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from fairchem_gdeq.relax.segments import segment_sum
from fairchem_gdeq.relax.structures import Structures

FEATURES = 4
FAINT = 1e-3  # eV/Angstrom and Angstrom: below this, lengths are not told apart


class StepDecoder(nn.Module):
    """What multiplies alpha in a plain step: one positive number for each structure.

    Eq. 11 and 12, without dropout, because every evaluation of a step has to be the same map: each
    free atom is embedded with its force, a query attends to all of them, and its answer becomes a
    scalar. Where the paper embeds coordinates, here are what a motion of the whole structure leaves
    alone: mass, length of the force, and distance from the atom with the longest force, along the
    force and at all. It begins as 1, whatever the structure, and is positive: at zero nothing would
    move, and at less, uphill.
    """

    def __init__(self, width: int) -> None:
        """
        Args:
            width: d_model, of the embedding.

        Raises:
            ValueError: a width below 1.
        """
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} of a step decoder: expected at least 1")
        with torch.random.fork_rng(devices=[]):  # the same on every rank
            torch.manual_seed(0)
            self.skip = nn.Linear(FEATURES, width, bias=False)  # W_2
            self.embed = nn.Sequential(
                nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width, bias=False)
            )
            self.query = nn.Parameter(torch.ones(width))
            self.key = nn.Linear(width, width, bias=False)
            self.value = nn.Linear(width, width, bias=False)
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
            self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, positions: Tensor, forces: Tensor, structures: Structures) -> Tensor:
        """[s], from positions (Angstrom) and forces (eV/Angstrom) [n, 3]."""
        s = structures
        seen = self._features(positions, forces, s).to(self.query.dtype)
        embedded = self.skip(seen) + self.embed(seen)
        match = self.key(embedded) @ self.query / len(self.query) ** 0.5
        match = match.masked_fill(~s.free, -torch.inf)
        highest = match.new_full((s.count,), -torch.inf)
        highest = highest.scatter_reduce(0, s.batch, match.detach(), "amax")
        # Without a free atom, nothing is attended to.
        weight = (match - highest.nan_to_num(neginf=0.0)[s.batch]).exp()
        total = segment_sum(weight, s.batch, s.count).clamp_min(1e-30)
        answer = segment_sum(weight[:, None] * self.value(embedded), s.batch, s.count)
        first = self.norms[0](self.query + answer / total[:, None])
        second = self.norms[1](first + self.mlp(first))
        factor: Tensor = self.out(second).squeeze(-1).exp()
        return factor.to(positions.dtype)

    def extra_repr(self) -> str:
        """The width, and twelve digits that change with the weights: settings are told apart by these."""
        digest = hashlib.sha256()
        for value in self.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return f"width={len(self.query)}, weights={digest.hexdigest()[:12]}"

    @staticmethod
    def _features(positions: Tensor, forces: Tensor, s: Structures) -> Tensor:
        """[n, FEATURES] of each atom."""
        length = (forces.square().sum(-1) + FAINT**2).sqrt()
        away = s.minimum_image(positions - positions[_longest(length.detach(), s)][s.batch])
        distance = (away.square().sum(-1) + FAINT**2).sqrt()
        along = (forces * away).sum(-1) / (length * distance)
        return torch.stack([s.masses.log(), length.log(), distance, along], dim=-1)


def _longest(lengths: Tensor, s: Structures) -> Tensor:
    """Index [s] of the atom of each structure with the largest of the values [n], the first of equals."""
    most = lengths.new_zeros(s.count).scatter_reduce(0, s.batch, lengths, "amax")
    places = torch.arange(len(lengths), device=lengths.device)
    last = len(lengths) - 1  # of structures whose values are not finite
    candidates = torch.where(lengths >= most[s.batch], places, last)
    return places.new_full((s.count,), last).scatter_reduce(0, s.batch, candidates, "amin")
