"""The padded neighbour lists of EScAIP and AllScAIP, frozen.

Both models build, in every forward pass, one table [atom, slot] of neighbours: the pairs whose
envelope argument is below 1, in its order. The argument is the soft or hard maximum of three numbers:
the pair's rank at either end over k, and its distance over the cutoff. Frozen are the pairs, their
periodic images and their slots, and hard ranks, which are steps. Displacements and, with soft ranks,
the envelope follow the positions: the model's own smooth function, with its own forces at X_0.

``build_radius_graph`` is the one function of fairchem in which pairs are chosen. It is called once for
each structure and replaced here for the duration of one call: once by a recorder, then by a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import accumulate, pairwise
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.allscaip.AllScAIP import AllScAIPBackbone
from fairchem.core.models.allscaip.utils import allscaip_radius_graph
from fairchem.core.models.escaip.utils import graph_utils
from fairchem.core.models.escaip.utils import radius_graph as escaip_radius_graph
from fairchem.core.models.escaip.utils.radius_graph import hard_rank, safe_norm, soft_rank
from torch import Tensor, nn

from fairchem_gdeq.fairchem2.graphs import require_closed, sizes
from fairchem_gdeq.frozen.cells import lattice_shift, unwrapped, with_positions, wrapped
from fairchem_gdeq.frozen.graphs import joined_edges
from fairchem_gdeq.frozen.patching import replaced, swapped
from fairchem_gdeq.relax.segments import to_device

BUILDER = "build_radius_graph"
BEYOND = 2.0  # an envelope argument above 1: the pair is masked


def _displacements(pos: Tensor, cell: Tensor, image_id: Tensor) -> Tensor:
    """From each atom to each image of each atom [n, n, m, 3], Angstrom."""
    return (pos[:, None] + image_id @ cell)[None] - pos[:, None, None]


def _ranks(distance: Tensor, rank: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Rank of every pair [n, n, m] among those of its first and of its second atom."""
    n, _, m = distance.shape
    first = rank(distance.reshape(n, n * m)).view(n, n, m)
    flipped = distance.transpose(0, 1).reshape(n, n * m)
    return first, rank(flipped).view(n, n, m).transpose(0, 1)


def _legendre(x: Tensor, lmax: int) -> Tensor:
    """P_0(x) ... P_lmax(x) in a last dimension.

    EScAIP's own, for angle biases, overwrites what autograd needs for derivatives by positions.
    """
    p = [torch.ones_like(x), x]
    for n in range(1, lmax):
        p.append(((2 * n + 1) * x * p[n] - n * p[n - 1]) / (n + 1))
    return torch.stack(p[: lmax + 1], dim=-1)


class NeighbourLists:
    """EScAIP and AllScAIP: padded neighbour lists. See the module's docstring."""

    rotation_equivariant = False  # they read the directions of displacements as plain numbers

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone  # of a class that comes without types
        self.all_pairs = isinstance(backbone, AllScAIPBackbone)
        self.module = allscaip_radius_graph if self.all_pairs else escaip_radius_graph

    # ---- freezing ----------------------------------------------------------------------------

    def periodic(self, batch: AtomicData) -> Tensor:
        """As ``Graphs.periodic``."""
        if self.all_pairs:
            return batch.pbc
        return torch.full_like(batch.pbc, self.backbone.molecular_graph_cfg.use_pbc)

    def build(self, batch: AtomicData) -> AtomicData:
        """As ``Graphs.build``, by running the model's own preprocessing once.

        Per edge: ``image``, its row in fairchem's list of periodic images; ``slots`` [e, 2], its
        places in the tables of its two atoms; ``rank`` [e], its hard rank over k. Per atom:
        ``wrap``. AllScAIP also: ``nearest``, the image that gives each pair's shortest distance.
        """
        with torch.no_grad():
            out = with_positions(batch, batch.pos.detach())
            inside, wrap = wrapped(out, self.periodic(batch))
            parts: list[dict[str, Tensor]] = []
            recorder = self._recorder(parts, len(batch.natoms))
            with self._plainly(), self._replaced(recorder, batch):
                self.backbone.data_preprocess(inside)
            for key in ("image", "slots", "rank"):
                out[key] = torch.cat([p[key] for p in parts])
            # As in an edge list, the source is the neighbour and the target the centre.
            out.edge_index = joined_edges([p["pairs"] for p in parts], sizes(batch)).flip(0)
            shifts = torch.cat([p["shift"] for p in parts])
            out.cell_offsets = unwrapped(shifts, out.edge_index, wrap)
            out.edge_counts = [len(p["image"]) for p in parts]
            out.nedges = to_device(torch.tensor(out.edge_counts), wrap.device)
            out.wrap = wrap
            require_closed(out)
            if self.all_pairs:
                out.nearest = [p["nearest"] for p in parts]
        return out

    def _recorder(self, parts: list[dict[str, Tensor]], structures: int) -> Callable[..., Any]:
        """fairchem's function, which also leaves what it chose in ``parts``."""
        original = self.module.build_radius_graph
        widest: list[Tensor] = []
        width = self.backbone.molecular_graph_cfg.knn_pad_size
        drops = self.all_pairs and self.backbone.global_cfg.use_padding

        def record(
            pos: Tensor,
            cell: Tensor,
            image_id: Tensor,
            cutoff: float,
            start: Any,
            device: Any,
            k: int,
            soft: bool,
            *rest: Any,
            **more: Any,
        ) -> Any:
            found = original(pos, cell, image_id, cutoff, start, device, k, soft, *rest, **more)
            slots = torch.stack(found[2:4], dim=1)
            widest.append(slots.max() + 1)
            if not self.all_pairs and len(widest) == structures:  # fairchem fills its tables next
                self._check_slots(int(torch.stack(widest).max()))
            columns: tuple[Any, ...] = (found[0], found[1], found[4], found[5], slots)
            if drops:
                fits = (slots < width).all(dim=1).nonzero().flatten()
                columns = tuple(column[fits] for column in columns)
            i, j, vectors, envelope, slots = columns
            i, j = i - start, j - start
            # fairchem returns the displacement of a pair but not which image it belongs to.
            shift = vectors - pos[j] + pos[i]
            image = torch.cdist(shift.double(), (image_id @ cell).double()).argmin(dim=1)
            distance = safe_norm(_displacements(pos, cell, image_id))
            part = {"pairs": torch.stack([i, j]), "slots": slots, "image": image}
            part["rank"] = torch.zeros_like(envelope)
            if not soft:
                first, second = _ranks(distance, hard_rank)
                part["rank"] = torch.maximum(first, second)[i, j, image] / k
            part["shift"] = image_id[image]
            part["nearest"] = distance.argmin(dim=2)
            parts.append(part)
            return found

        return record

    def _check_slots(self, needed: int) -> None:
        """EScAIP's table has a fixed width; AllScAIP drops what does not fit, or has no width."""
        width = self.backbone.molecular_graph_cfg.knn_pad_size
        if needed > width:
            raise ValueError(
                f"an atom has {needed} neighbours and the model's table has room for {width}: load "
                f"it with overrides backbone.knn_pad_size: {needed} or more"
            )

    # ---- replaying ---------------------------------------------------------------------------

    @contextmanager
    def given(self, batch: AtomicData) -> Iterator[None]:
        """As ``Graphs.given``."""
        with (
            self._plainly(),
            self._replaced(self._replay(batch), batch),
            self._exact_angles(),
        ):
            yield

    def _replaced(
        self, function: Callable[..., Any], batch: AtomicData
    ) -> AbstractContextManager[None]:
        """Another builder inside; fairchem calls it once for each structure."""
        own = "the model chooses neighbours of its own instead of the frozen ones"
        return replaced(self.module, BUILDER, function, own, times=len(batch.natoms))

    def _exact_angles(self) -> AbstractContextManager[None]:
        """Inside, angle biases have a derivative. Only models that are configured so have them."""
        if self.all_pairs or self.backbone.gnn_cfg.use_angle_embedding != "bias":
            return nullcontext()
        broken = "angle biases have no derivative by positions"
        return replaced(graph_utils, "legendre_polynomials", _legendre, broken)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Without torch.compile, on one device.

        It would compile anew for every number of atoms. The imaginary atoms that serve it alone are
        left out as well: in EScAIP they can give NaN gradients.
        """
        config, graph = self.backbone.global_cfg, self.backbone.molecular_graph_cfg
        with ExitStack() as stack:
            stack.enter_context(swapped(config, "use_compile", False))
            stack.enter_context(swapped(config, "use_padding", False))
            if self.all_pairs:
                stack.enter_context(swapped(graph, "preprocess_on_cpu", False))
            yield

    def _replay(self, batch: AtomicData) -> Callable[..., Any]:
        """A stand-in that returns the frozen pairs of one structure after the other."""
        bounds = pairwise(accumulate(batch.edge_counts, initial=0))
        nearest = iter(batch.nearest if self.all_pairs else [])
        shifts = iter(lattice_shift(batch, batch.wrap).split(sizes(batch)))
        low_mem_rank = self.module.soft_rank_low_mem

        def replay(
            pos: Tensor,
            cell: Tensor,
            image_id: Tensor,
            cutoff: float,
            start: Any,
            device: Any,
            k: int,
            soft: bool,
            sigmoid_scale: float,
            lse_scale: float,
            use_low_mem: bool,
            compute_dist_pairwise: bool = False,
        ) -> tuple[Any, ...]:
            edges = slice(*next(bounds))
            j, i = batch.edge_index[:, edges] - start
            image = batch.image[edges]
            pos = pos + next(shifts)
            vectors = pos[j] + image_id[image] @ cell - pos[i]
            length = safe_norm(vectors)
            if soft:

                def rank(d: Tensor) -> Tensor:
                    return (
                        low_mem_rank(d, k, sigmoid_scale)
                        if use_low_mem
                        else soft_rank(d, sigmoid_scale)
                    )

                all_lengths = safe_norm(_displacements(pos, cell, image_id))
                first, second = (r[i, j, image] / k for r in _ranks(all_lengths, rank))
                terms = torch.stack([first, second, length / cutoff])
                envelope = lse_scale * torch.logsumexp(terms / lse_scale, dim=0)
                # A pair that left the ranked ones: its infinite argument has a NaN derivative.
                envelope = torch.where(envelope.isfinite(), envelope, BEYOND)
            else:
                envelope = torch.maximum(batch.rank[edges], length / cutoff)
            envelope = torch.where(length == 0, 0.0, envelope)  # the atom itself
            slots = batch.slots[edges]
            found = (i + start, j + start, slots[:, 0], slots[:, 1], vectors, envelope)
            if not self.all_pairs:
                return found
            closest = next(nearest)
            if not compute_dist_pairwise:
                return *found, None
            return *found, safe_norm(pos[None] + image_id[closest] @ cell - pos[:, None])

        return replay

    def skin(self, batch: AtomicData) -> Tensor:
        """NaN [s]: neighbours are chosen by rank as well as by distance, so no length tells."""
        return batch.pos.new_full((len(batch.natoms),), torch.nan)
