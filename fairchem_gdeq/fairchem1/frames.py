"""Edge frames with a derivative.

EquiformerV2, eSCN and eSEN turn each edge's features into a frame with the edge along y. fairchem 1
draws the rest of that rotation at random in every forward pass and detaches all of it, so that
autograd never sees how the frames turn with the edges. Here a frozen edge has a frozen frame, which
follows the edge by the smallest rotation that takes its old direction to the new one: smooth
everywhere short of a half turn, unlike Euler angles, and exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch
from e3nn import o3
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.graphs import EdgeList, FrozenGraph, Lonely
from fairchem_gdeq.frozen.rolls import rolls

DRAWN = "the frames of edges are drawn at random and have no derivative"
Y, HALF_TURN, FLIP = (0.0, 1.0, 0.0), (math.pi, 0.0, 0.0), (1.0, -1.0, -1.0)
SMALL = 1e-4  # squared sine below which theta / sin(theta) is a series, good to 1e-17
TAYLOR = tuple(1 / math.factorial(n) for n in range(13))


def rotation_vector(start: Tensor, end: Tensor) -> Tensor:
    """The smallest rotation that takes unit vectors ``start`` to ``end``, axis times angle [e, 3].

    Smooth also where the two are equal; undefined (NaN) where they are opposite.
    """
    cross, cosine = torch.linalg.cross(start, end), (start * end).sum(-1, keepdim=True)
    square = (cross * cross).sum(-1, keepdim=True)
    near = (square < SMALL) & (cosine > 0)
    sine = torch.where(near, 1.0, square).sqrt()
    series = 1 + square / 6 + 3 * square**2 / 40 + 5 * square**3 / 112
    return cross * torch.where(near, series, torch.atan2(sine, cosine) / sine)


@cache
def _vector(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@cache
def _generators(degree: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """so(3) generators [3, 2l+1, 2l+1] in e3nn's real basis, worked out in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # what e3nn computes them in
    try:
        generators = o3.so3_generators(degree)
    finally:
        torch.set_default_dtype(before)
    return generators.to(device, dtype)


def _halvings(degree: int, dtype: torch.dtype) -> int:
    """How often a turn by up to pi is halved before twelve terms give it to rounding, squared again too.

    Its exponent's norm is at most l pi, as the eigenvalues of a generator are whole numbers up to i l.
    """
    reach = 0.3 if dtype == torch.float64 else 1.2
    return math.ceil(math.log2(degree * math.pi / reach))


def _exponential(exponent: Tensor, halvings: int) -> Tensor:
    """exp of [e, d, d], each halved ``halvings`` times for Taylor's polynomial and squared as often.

    ``torch.matrix_exp`` chooses its polynomial by norms that the CPU has to see, so that it waits for the
    device, and once more in the backward pass. Here the products are the same whatever the values.
    """
    first = exponent / 2**halvings
    second = first @ first
    third, fourth = second @ first, second @ second
    one = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device).expand_as(first)
    powers = torch.stack([one, first, second, third], dim=1).flatten(2)
    # By Paterson and Stockmeyer: three cubics in the exponent are the terms of one in its fourth power.
    cubics = _vector(TAYLOR[:12], first.device, first.dtype).view(3, 4) @ powers
    low, middle, high = cubics.unflatten(2, first.shape[1:]).unbind(1)
    result = torch.baddbmm(middle, fourth, high + TAYLOR[12] * fourth)
    result = torch.baddbmm(low, fourth, result)
    for _ in range(halvings):
        result = result @ result
    return result


def wigner_blocks(rotation: Tensor, lmax: int) -> list[Tensor]:
    """Wigner matrices [e, 2l+1, 2l+1] for l = 0..lmax of rotation vectors [e, 3], at most pi long."""
    device, dtype = rotation.device, rotation.dtype
    blocks = [rotation.new_ones(len(rotation), 1, 1)]
    for degree in range(1, lmax + 1):
        exponent = torch.einsum("ei,iab->eab", rotation, _generators(degree, device, dtype))
        blocks.append(_exponential(exponent, _halvings(degree, dtype)))
    return blocks


def turns(start: Tensor, vectors: Tensor, lmax: int) -> list[Tensor]:
    """Wigner matrices of the smallest rotations of unit vectors ``start`` to edge vectors [e, 3]."""
    now = torch.nn.functional.normalize(vectors, dim=-1)
    return wigner_blocks(rotation_vector(start, now), lmax)


def frames(unit: Tensor, roll: Tensor, lmax: int) -> list[Tensor]:
    """Wigner matrices of rotations that take unit vectors [e, 3] to y, then roll about it.

    Edges that point down are first turned about x by half a turn, so that none is near the one
    direction without a smallest rotation to y.
    """
    down = unit[:, 1:2] < 0
    half_turn, signs, y = (_vector(v, unit.device, unit.dtype) for v in (HALF_TURN, FLIP, Y))
    flip = torch.where(down, half_turn, 0.0)
    turned = torch.where(down, unit * signs, unit)
    parts = [wigner_blocks(rotation_vector(turned, y.expand_as(turned)), lmax)]
    roll = torch.remainder(roll + math.pi, 2 * math.pi) - math.pi
    parts = [wigner_blocks(roll.to(unit)[:, None] * y, lmax), *parts, wigner_blocks(flip, lmax)]
    return [a @ b @ c for a, b, c in zip(*parts, strict=True)]


def block_diagonal(blocks: list[Tensor]) -> Tensor:
    """[e, a, a], [e, b, b], ... as one [e, a+b+..., a+b+...]."""
    size = sum(block.shape[-1] for block in blocks)
    rows, start = [], 0
    for block in blocks:
        width = block.shape[-1]
        rows.append(torch.nn.functional.pad(block, (start, size - start - width)))
        start += width
    return torch.cat(rows, dim=1)


class FramedEdges(EdgeList):
    """Backbones with edge frames. A family says where its Wigner matrices come from."""

    lonely: Lonely = "in company"

    def build(self, batch: Batch, widen: float = 0.0) -> FrozenGraph:
        """As ``EdgeList.build``; also frozen are each edge's direction and roll."""
        graph = super().build(batch, widen)
        with torch.no_grad():
            unit = torch.nn.functional.normalize(graph.vectors(batch.pos, batch.cell), dim=-1)
            graph.extra["unit"] = unit
            graph.extra["roll"] = rolls(graph.edge_index, graph.cell_offsets, batch)
        return graph

    @staticmethod
    def wigner(graph: FrozenGraph, vectors: Tensor, lmax: int) -> Tensor:
        """Wigner matrices [e, (lmax+1)^2, (lmax+1)^2] of the frames at edge vectors [e, 3]."""
        unit, key = graph.extra["unit"].to(vectors), f"frames{lmax}"
        with torch.autocast(vectors.device.type, enabled=False):
            if key not in graph.derived:
                with torch.no_grad():
                    graph.derived[key] = frames(unit, graph.extra["roll"], lmax)
            pairs = zip(graph.derived[key], turns(unit, vectors, lmax), strict=True)
            return block_diagonal([held @ turn.mT for held, turn in pairs])

    @contextmanager
    def given(self, graph: FrozenGraph) -> Iterator[None]:
        """As ``EdgeList.given``, the frames included."""
        with super().given(graph), self._framed(graph):
            yield

    def _framed(self, graph: FrozenGraph) -> AbstractContextManager[None]:
        """Inside, the backbone's Wigner matrices are those of the frozen frames."""
        raise NotImplementedError
