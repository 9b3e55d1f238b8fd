"""What freezing the context c means for each family of fairchem 2 backbones.

A frozen graph travels in the batch: ``edge_index`` [2, e], ``cell_offsets`` [e, 3] and ``nedges`` [s],
with the edge vectors x_source - x_target + offset @ cell at the positions as given, and whatever else
the family needs per edge, atom or structure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from types import ModuleType
from typing import Any, Protocol

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.graph.compute import generate_graph
from fairchem.core.models.uma import escn_md
from torch import Tensor, nn

from fairchem_gdeq.frozen.cells import into_cell, inverse_cells
from fairchem_gdeq.frozen.patching import Switch, called
from fairchem_gdeq.frozen.rolls import rolls
from fairchem_gdeq.relax.segments import (
    atoms_where,
    segment_count,
    to_device,
    transformed,
    where_of,
)

SKIN_SEARCH = 0.5  # Angstrom beyond the cutoff where ``skin`` looks for pairs about to enter
NODE_KEYS = ("pos", "atomic_numbers", "fixed", "tags", "wrap")
GRAPH_KEYS = ("cell", "inverse_cell", "pbc", "natoms", "charge", "spin", "nedges")
EDGE_KEYS = ("cell_offsets", "roll", "image", "slots", "rank")
LIST_KEYS = ("sid", "dataset", "seen_through", "edge_counts", "nearest")


class Graphs(Protocol):
    """How one family of backbones gets its neighbours, and how they are frozen."""

    rotation_equivariant: bool  # whether forces turn with a structure that is not periodic

    def periodic(self, batch: AtomicData) -> Tensor:
        """Lattice vectors [s, 3], bool, along which the model sees a periodic structure."""
        ...

    def build(self, batch: AtomicData) -> AtomicData:
        """The batch, which ``prepare`` has seen, with the graph that the model itself would make.

        Raises:
            ValueError: the structures cannot have a graph; says which and why.
        """
        ...

    def given(self, batch: AtomicData) -> AbstractContextManager[None]:
        """Inside, the backbone works on the graph of the batch instead of its own."""
        ...

    def skin(self, batch: AtomicData) -> Tensor:
        """Per structure [s], how far (Angstrom) the nearest pair is from entering or leaving."""
        ...


def with_positions(batch: AtomicData, positions: Tensor) -> AtomicData:
    """A shallow copy at other positions; models add keys to what they are given."""
    data = copy.copy(batch)
    data.__keys__ = set(batch.__keys__)
    data.pos = positions
    return data


@contextmanager
def swapped(owner: object, name: str, value: Any) -> Iterator[None]:
    """Another value of ``owner.name`` inside, the old one afterwards."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def replaced(
    module: ModuleType, name: str, function: Callable[..., Any], otherwise: str, times: int = 1
) -> Iterator[None]:
    """Another function in the place of a module's inside, which fairchem must call (``called``)."""
    place = f"{module.__name__}.{name}"
    with called(function, place, otherwise, times) as standin, swapped(module, name, standin):
        yield


def lattice_shift(batch: AtomicData, whole: Tensor) -> Tensor:
    """Whole lattice vectors per atom [n, 3] in Angstrom."""
    return transformed(whole, batch.cell[batch.batch])


def prepare(batch: AtomicData, periodic: Tensor) -> None:
    """Work out what stays as it is while structures move, and needs answers from the device.

    Sets ``inverse_cell`` [s, 3, 3] and ``seen_through``, a bool for each structure: whether the
    model sees neighbours through a boundary that is not periodic.

    Raises:
        ValueError: a structure is periodic for the model and its cell has no volume.
    """
    batch.inverse_cell = inverse_cells(batch, periodic)
    batch.seen_through = (periodic & ~batch.pbc).any(dim=1).tolist()


class EdgeList:
    """eSCN-MD, eSEN and UMA: a list of edges, which the model takes from the batch when asked to.

    Frozen are the pairs, their periodic images and the rolls of their frames. Distances, directions,
    the envelope that vanishes at the cutoff and the Wigner matrices follow the positions.
    """

    rotation_equivariant = True

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def periodic(self, batch: AtomicData) -> Tensor:
        """As ``Graphs.periodic``."""
        # Versions 2 and 3 read the structures' own pbc whatever they are told.
        forced = self.backbone.always_use_pbc and self.backbone.radius_pbc_version == 1
        return torch.ones_like(batch.pbc) if forced else batch.pbc

    def build(self, batch: AtomicData, widen: float = 0.0) -> AtomicData:
        """As ``Graphs.build``; ``widen`` is added to the cutoff, Angstrom.

        Positions may lie outside the cell: the builder sees them wrapped, and the offsets are
        corrected so that the edge vectors belong to the positions as given.
        """
        model = self.backbone
        with torch.no_grad():
            pos = batch.pos.detach()
            pbc = self.periodic(batch)
            wrap = into_cell(with_positions(batch, pos), pbc)
            graph = generate_graph(
                with_positions(batch, pos + lattice_shift(batch, wrap)),
                cutoff=model.cutoff + widen,
                max_neighbors=model.max_neighbors,
                enforce_max_neighbors_strictly=model.enforce_max_neighbors_strictly,
                radius_pbc_version=model.radius_pbc_version,
                pbc=pbc,
            )
            edges, offsets = graph["edge_index"], graph["cell_offsets"]
            out = with_positions(batch, pos)
            out.edge_index = edges
            out.cell_offsets = offsets.to(pos.dtype) + wrap[edges[0]] - wrap[edges[1]]
            owner = batch.batch[edges[1]]
            if "edge_counts" in out:
                del out["edge_counts"]  # of another graph
            out.nedges = segment_count(owner, len(batch.natoms))
            first = (batch.natoms.cumsum(0) - batch.natoms)[owner]
            out.roll = rolls(edges - first, out.cell_offsets).to(pos.dtype)
            if widen == 0:
                require_closed(out)
        return out

    @contextmanager
    def given(self, batch: AtomicData) -> Iterator[None]:
        """As ``Graphs.given``: fairchem's own switch, and rolls that are not drawn at random."""
        original = escn_md.axis_angle_wigner_hybrid

        def rolled(vectors: Tensor, *args: Any, **kwargs: Any) -> Any:
            # Without any edge fairchem adds one of its own, outside the cutoff.
            gamma = batch.roll if len(batch.roll) else vectors.new_zeros(len(vectors))
            return original(vectors, *args, gamma=gamma, **kwargs)

        drawn = "the frames of edges are rolled at random, and forces are not one map"
        switch = f"{type(self.backbone).__name__}.otf_graph"
        own = "the model works on a graph of its own instead of the frozen one"
        with (
            called(lambda: False, switch, own) as read,
            swapped(self.backbone, "otf_graph", Switch(read)),
            replaced(escn_md, "axis_angle_wigner_hybrid", rolled, drawn),
        ):
            yield

    def skin(self, batch: AtomicData) -> Tensor:
        """As ``Graphs.skin``, at most ``SKIN_SEARCH``."""
        wide = self.build(batch, widen=SKIN_SEARCH)
        source, target = wide.edge_index
        structure = wide.batch[target]
        shift = transformed(wide.cell_offsets, wide.cell[structure])
        distance = (wide.pos[source] - wide.pos[target] + shift).norm(dim=-1)
        gap = (distance - self.backbone.cutoff).abs()
        widest = gap.new_full((len(wide.natoms),), SKIN_SEARCH)
        return widest.scatter_reduce(0, structure, gap, "amin")


def given(graphs: Graphs | None, batch: AtomicData) -> AbstractContextManager[None]:
    """``graphs.given``, or nothing for a model without neighbours."""
    return nullcontext() if graphs is None else graphs.given(batch)


def require_closed(batch: AtomicData) -> None:
    """Refuse edges that leave a structure where it ends.

    EScAIP with use_pbc, and eSCN-type models that force periodicity, put images beside a molecule
    or above a slab. With enough vacuum nothing comes of it; without, forces would be those of a
    crystal of molecules.

    Raises:
        ValueError: names the structures.
    """
    if not any(batch.seen_through):
        return
    structure = batch.batch[batch.edge_index[1]]
    through = ((batch.cell_offsets.round() != 0) & ~batch.pbc[structure]).any(dim=1)
    if bool(through.any()):
        found = torch.unique(structure[through]).tolist()
        raise ValueError(
            f"structures {[batch.sid[i] for i in found]} are not periodic in every direction, but this "
            "model sees neighbours through their boundaries. Give them a cell with vacuum wider than "
            "the cutoff, or load the model with overrides backbone.use_pbc: false (EScAIP) or "
            "backbone.always_use_pbc: false (eSEN)."
        )


def select_structures(batch: AtomicData, keep: Tensor) -> AtomicData:
    """The structures where the mask [s] holds, with their part of the graph.

    With a mask on the host, only the first selection from a graph waits for the device: it asks how
    many edges each structure has.
    """
    mask, device = keep.cpu(), batch.pos.device
    chosen = mask.tolist()
    if "edge_counts" not in batch:
        batch.edge_counts = batch.nedges.tolist() if len(batch.edge_index[1]) else [0] * len(chosen)
    kept = to_device(mask, device)[batch.batch]
    number = kept.long().cumsum(0) - 1
    structures = to_device(mask.nonzero().flatten(), device)
    atoms = atoms_where(mask, sizes(batch), device)
    left = sum(_where(chosen, batch.edge_counts))
    edges = where_of(kept[batch.edge_index[1]], left)
    data = with_positions(batch, batch.pos)
    for keys, rows in ((NODE_KEYS, atoms), (GRAPH_KEYS, structures), (EDGE_KEYS, edges)):
        for key in keys:
            if key in batch:
                data[key] = batch[key][rows]
    data.edge_index = number[batch.edge_index[:, edges]]
    data.batch = (to_device(mask.long().cumsum(0), device) - 1)[batch.batch[atoms]]
    for key in LIST_KEYS:
        if key in batch:
            data[key] = _where(chosen, batch[key])
    restate(data, _where(chosen, sizes(batch)))
    return data


def _where(chosen: list[bool], values: Sequence[Any]) -> list[Any]:
    return [value for value, kept in zip(values, chosen, strict=True) if kept]


def join_structures(batches: Sequence[AtomicData]) -> AtomicData:
    """The structures of several batches, one after the other, with their graphs if all have one."""
    data = with_positions(batches[0], torch.cat([b.pos for b in batches]))
    for key in EDGE_KEYS:
        if key in data and not all(key in b for b in batches):
            del data[key]
    for key in (*NODE_KEYS, *GRAPH_KEYS, *EDGE_KEYS):
        if key in data and key != "pos":
            data[key] = torch.cat([b[key] for b in batches])
    for key in LIST_KEYS:
        if all(key in b for b in batches):
            data[key] = [value for b in batches for value in b[key]]
        elif key in data:
            del data[key]
    edges, owners, atoms, count = [], [], 0, 0
    for b in batches:
        edges.append(b.edge_index + atoms)
        owners.append(b.batch + count)
        atoms, count = atoms + len(b.batch), count + len(b.natoms)
    data.edge_index, data.batch = torch.cat(edges, dim=1), torch.cat(owners)
    restate(data, [n for b in batches for n in sizes(b)])
    return data


def sizes(batch: AtomicData) -> list[int]:
    """Atoms of each structure, as ``restate`` told the batch: no device is asked."""
    return batch.get_batch_stats()[3]


def restate(batch: AtomicData, natoms: list[int]) -> None:
    """Tell the batch its own division into structures, which AllScAIP reads from it."""
    batch.assign_batch_stats({"pos": [0, *accumulate(natoms)]}, {}, {}, natoms)


def edges_changed(before: AtomicData, after: AtomicData) -> Tensor:
    """Edges [s] that one graph of a batch has and the other lacks."""
    rows = [
        torch.cat([b.edge_index.T, b.cell_offsets.round().long()], dim=1) for b in (before, after)
    ]
    edges, number = torch.unique(torch.cat(rows), dim=0, return_counts=True)
    lonely = edges[number == 1][:, 1]
    return torch.bincount(before.batch[lonely], minlength=len(before.natoms))
