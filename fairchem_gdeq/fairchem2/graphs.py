"""What freezing the context c means for each family of fairchem 2 backbones.

A frozen graph travels in the batch: ``edge_index`` [2, e], ``cell_offsets`` [e, 3] and ``nedges`` [s],
with the edge vectors x_source - x_target + offset @ cell at the positions as given, and whatever else
the family needs per edge, atom or structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any, Protocol

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.uma import escn_md
from torch import Tensor, nn

from fairchem_gdeq.frozen.cells import inverse_cells, with_positions
from fairchem_gdeq.frozen.graphs import (
    SKIN_SEARCH,
    Neighbours,
    joined_edges,
    kept_edges,
    nearest_to_cutoff,
)
from fairchem_gdeq.frozen.patching import Switch, called, replaced, swapped
from fairchem_gdeq.frozen.rolls import rolls
from fairchem_gdeq.models.neighbours import radius_edges
from fairchem_gdeq.relax.segments import (
    atoms_where,
    segment_count,
    to_device,
    transformed,
)

NODE_KEYS = ("pos", "atomic_numbers", "fixed", "tags", "wrap")
GRAPH_KEYS = ("cell", "inverse_cell", "pbc", "natoms", "charge", "spin", "nedges")
EDGE_KEYS = ("cell_offsets", "roll", "image", "slots", "rank")
LIST_KEYS = ("sid", "dataset", "seen_through", "edge_counts", "nearest")


class Graphs(Neighbours, Protocol):
    """How one family of backbones gets its neighbours, and how they are frozen."""

    def build(self, batch: AtomicData) -> AtomicData:
        """The batch, which ``prepare`` has seen, with the graph that the model itself would make.

        Raises:
            ValueError: the structures cannot have a graph; says which and why.
        """
        ...

    def given(self, batch: AtomicData) -> AbstractContextManager[None]:
        """Inside, the backbone works on the graph of the batch instead of its own."""
        ...


def prepare(batch: AtomicData, periodic: Tensor) -> None:
    """Work out what stays as it is while structures move, and needs answers from the device.

    Sets ``inverse_cell`` [s, 3, 3] and ``seen_through``, a bool for each structure: whether the
    model sees neighbours through a boundary that is not periodic.

    Raises:
        ValueError: a structure is periodic for the model and its cell has no volume.
    """
    batch.inverse_cell = inverse_cells(batch, periodic)
    batch.seen_through = (periodic & ~batch.pbc).any(dim=1).tolist()


class Edges:
    """Backbones that take their list of edges from the batch where ``otf_graph`` is off.

    Frozen are the pairs and their periodic images. All else follows the positions.
    """

    rotation_equivariant = True

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone  # of a class that comes without types

    def periodic(self, batch: AtomicData) -> Tensor:
        """As ``Graphs.periodic``."""
        # Versions 2 and 3 read the structures' own pbc whatever they are told.
        forced = self.backbone.always_use_pbc and self.backbone.radius_pbc_version == 1
        return torch.ones_like(batch.pbc) if forced else batch.pbc

    def build(self, batch: AtomicData, widen: float = 0.0) -> AtomicData:
        """As ``Graphs.build``; ``widen`` is added to the cutoff, Angstrom.

        Positions may lie outside the cell (``radius_edges``).
        """
        model = self.backbone
        with torch.no_grad():
            out = with_positions(batch, batch.pos.detach())
            edges, offsets = radius_edges(out, model, self.periodic(batch), widen)
            out.edge_index, out.cell_offsets = edges, offsets
            if "edge_counts" in out:
                del out["edge_counts"]  # of another graph
            out.nedges = segment_count(batch.batch[edges[1]], len(batch.natoms))
            if widen == 0:
                require_closed(out)
        return out

    def given(self, batch: AtomicData) -> AbstractContextManager[None]:
        """As ``Graphs.given``."""
        return self._given()

    @contextmanager
    def _given(self) -> Iterator[None]:
        """The model's own switch is off, and it must look at it."""
        switch = f"{type(self.backbone).__name__}.otf_graph"
        own = "the model works on a graph of its own instead of the frozen one"
        with (
            called(lambda: False, switch, own) as read,
            swapped(self.backbone, "otf_graph", Switch(read)),
        ):
            yield

    def skin(self, batch: AtomicData) -> Tensor:
        """As ``Graphs.skin``, at most ``SKIN_SEARCH``."""
        wide = self.build(batch, widen=SKIN_SEARCH)
        source, target = wide.edge_index
        structure = wide.batch[target]
        shift = transformed(wide.cell_offsets, wide.cell[structure])
        distance = (wide.pos[source] - wide.pos[target] + shift).norm(dim=-1)
        return nearest_to_cutoff(distance, self.backbone.cutoff, structure, len(wide.natoms))


class EdgeList(Edges):
    """eSCN-MD, eSEN and UMA: a list of edges, which the model takes from the batch when asked to.

    Frozen are the pairs, their periodic images and the rolls of their frames. Distances, directions,
    the envelope that vanishes at the cutoff and the Wigner matrices follow the positions.
    """

    def build(self, batch: AtomicData, widen: float = 0.0) -> AtomicData:
        """As ``Edges.build``, with the rolls."""
        out = super().build(batch, widen)
        out.roll = rolls(out.edge_index, out.cell_offsets, batch).to(out.pos.dtype)
        return out

    @contextmanager
    def given(self, batch: AtomicData) -> Iterator[None]:
        """As ``Graphs.given``: and rolls that are not drawn at random."""
        original = escn_md.axis_angle_wigner_hybrid

        def rolled(vectors: Tensor, *args: Any, **kwargs: Any) -> Any:
            # Without any edge fairchem adds one of its own, outside the cutoff.
            gamma = batch.roll if len(batch.roll) else vectors.new_zeros(len(vectors))
            return original(vectors, *args, gamma=gamma, **kwargs)

        drawn = "the frames of edges are rolled at random, and forces are not one map"
        with self._given(), replaced(escn_md, "axis_angle_wigner_hybrid", rolled, drawn):
            yield


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
    structures = to_device(mask.nonzero().flatten(), device)
    atoms = atoms_where(mask, sizes(batch), device)
    left = sum(_where(chosen, batch.edge_counts))
    edges, pairs = kept_edges(batch.edge_index, batch.batch, mask, left)
    data = with_positions(batch, batch.pos)
    for keys, rows in ((NODE_KEYS, atoms), (GRAPH_KEYS, structures), (EDGE_KEYS, edges)):
        for key in keys:
            if key in batch:
                data[key] = batch[key][rows]
    data.edge_index = pairs
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
    data.edge_index = joined_edges([b.edge_index for b in batches], [len(b.batch) for b in batches])
    first = accumulate([0, *(len(b.natoms) for b in batches[:-1])])
    data.batch = torch.cat([b.batch + count for b, count in zip(batches, first, strict=True)])
    restate(data, [n for b in batches for n in sizes(b)])
    return data


def sizes(batch: AtomicData) -> list[int]:
    """Atoms of each structure, as ``restate`` told the batch: no device is asked."""
    return batch.get_batch_stats()[3]


def restate(batch: AtomicData, natoms: list[int]) -> None:
    """Tell the batch its own division into structures, which AllScAIP reads from it."""
    batch.assign_batch_stats({"pos": [0, *accumulate(natoms)]}, {}, {}, natoms)
