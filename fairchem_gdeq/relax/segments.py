"""Per-structure reductions over flat tensors, and what the host may know without waiting.

A batch of structures is flat: atom quantities have shape [n, ...] and ``batch`` [n] (int) says to
which of the ``count`` structures an atom belongs. Structure quantities have shape [s, ...].

On a GPU the host runs ahead of the device, and whatever it asks of a tensor (``bool``, ``item``,
``nonzero``, a mask as an index) makes it wait until everything before is done. The loops of this
package ask once per force evaluation, by ``to_host``; all else is arithmetic on the device and indices
that the host works out by itself and sends, by ``to_device``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def segment_sum(values: Tensor, batch: Tensor, count: int) -> Tensor:
    """Sum of atom values [n, ...] in each structure: [s, ...]."""
    return values.new_zeros((count, *values.shape[1:])).index_add(0, batch, values)


def segment_count(batch: Tensor, count: int) -> Tensor:
    """How many entries of ``batch`` [n] each structure has: [s]; unlike ``bincount``, without a wait."""
    return batch.new_zeros(count).index_add(0, batch, torch.ones_like(batch))


def segment_dot(a: Tensor, b: Tensor, batch: Tensor, count: int) -> Tensor:
    """Inner product of two atom vector fields [n, 3] in each structure: [s]."""
    return segment_sum((a * b).sum(-1), batch, count)


def segment_norm(a: Tensor, batch: Tensor, count: int) -> Tensor:
    """Euclidean norm of an atom vector field [n, 3] over each structure: [s]."""
    return segment_dot(a, a, batch, count).sqrt()


def segment_products(a: Tensor, b: Tensor, batch: Tensor, count: int) -> Tensor:
    """All inner products of k and l atom vector fields, [k, n, 3] and [l, n, 3]: [s, k, l], double.

    In double from the start: small systems of such products are solved, and they are ill-conditioned.
    """
    return segment_sum(torch.einsum("kni,lni->nkl", a.double(), b.double()), batch, count)


def combined(weights: Tensor, fields: Tensor) -> Tensor:
    """sum_k of weights [n, k] times k atom vector fields [k, n, 3]: [n, 3].

    Not as a matrix product, which a GPU may be allowed to round to ten bits (TF32).
    """
    return (weights.T[..., None] * fields).sum(0)


def transformed(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Row vectors [..., 3] times a matrix [..., 3, 3] each; as ``combined``, exact under TF32 too."""
    return (vectors[..., None] * matrices).sum(-2)


def segment_max_norm(a: Tensor, batch: Tensor, count: int) -> Tensor:
    """Largest atom vector length |a_i| in each structure: [s]; 0 where it has no atoms.

    A NaN or infinity in a structure is that structure's result, and no other's.
    """
    lengths: Tensor = torch.linalg.vector_norm(a, dim=-1)
    return lengths.new_zeros(count).scatter_reduce(0, batch, lengths, "amax", include_self=True)


def segment_mean(values: Tensor, weights: Tensor, batch: Tensor, count: int) -> Tensor:
    """Weighted mean of atom values [n, 3] with weights [n] in each structure: [s, 3]."""
    total = segment_sum(weights, batch, count).clamp_min(1e-30)
    return segment_sum(values * weights[:, None], batch, count) / total[:, None]


def to_host(*columns: Tensor) -> Tensor:
    """Structure quantities [s] as one host tensor [k, s], double: a single wait for the device."""
    return torch.stack([column.double() for column in columns]).cpu()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without waiting for what the device has to do before."""
    return values.to(device, non_blocking=True)


def atoms_where(structures: Tensor, sizes: Sequence[int], device: torch.device) -> Tensor:
    """Indices [m] of the atoms of the structures where a host mask [s] holds; ``sizes`` has them all."""
    atoms = structures.repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    return to_device(atoms.nonzero().squeeze(-1), device)


def where_of(mask: Tensor, number: int) -> Tensor:
    """Indices [number] at which a device mask holds, in order: as ``nonzero``, the number being known."""
    return torch.argsort((~mask).to(torch.uint8), stable=True)[:number]
