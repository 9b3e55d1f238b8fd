"""Small analytic force fields that stand in for a potential in the tests of the method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairchem_gdeq.relax import Operator, Structures


def structures(
    sizes: list[int], fixed: list[int] | None = None, length: float | None = None
) -> Structures:
    """A batch of given sizes; ``fixed`` lists atom indices; ``length`` makes cubic cells."""
    n = sum(sizes)
    free = torch.ones(n, dtype=torch.bool)
    free[fixed or []] = False
    cell = torch.zeros(len(sizes), 3, 3)
    if length is not None:
        cell = (torch.eye(3) * length).expand(len(sizes), 3, 3).clone()
    return Structures(
        batch=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        free=free,
        masses=torch.linspace(1.0, 30.0, n),
        cell=cell,
        pbc=torch.full((len(sizes), 3), length is not None),
    )


def joined(fields: list) -> Tensor:
    """The batch index of several fields' structures, one field after the other."""
    out = fields[0].batch
    for field in fields[1:]:
        out = torch.cat([out, field.batch + out.max() + 1])
    return out


def kept(structures: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Mask [n] of the atoms of the structures where the mask [s] holds, and their new batch index."""
    structures = structures.to(batch.device)
    atoms = structures[batch]
    return atoms, (structures.long().cumsum(0) - 1)[batch[atoms]]


class PairField(nn.Module):
    """Translation-invariant and non-reciprocal, hence a non-symmetric Jacobian and a net force.

    F_i = sum_j a_i (stiff (r0 - r_ij) + tanh(w r_ij)) r_ij / |r_ij| over the structure's pairs.
    """

    translation_invariant = True
    rotation_equivariant = True

    def __init__(self, batch: Tensor, weights: Tensor | None = None, asymmetry: float = 0.2):
        super().__init__()
        self.batch = batch
        n = len(batch)
        spread = torch.linspace(-1, 1, n, device=batch.device).repeat_interleave(1)
        self.strength = 1.0 + asymmetry * spread if weights is None else weights
        self.stiff = nn.Parameter(torch.tensor(1.3))
        self.rest = nn.Parameter(torch.tensor(1.1))
        self.soft = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        d = x[:, None] - x[None]
        same = torch.eye(len(x), dtype=torch.bool, device=x.device)
        pairs = (self.batch[:, None] == self.batch[None]) & ~same
        r = torch.where(pairs, (d * d).sum(-1), 1.0).sqrt()
        size = self.stiff * (self.rest - r) + 0.1 * torch.tanh(self.soft * r)
        f = torch.where(pairs, size / r, 0.0)[..., None] * d
        return self.strength[:, None] * f.sum(1)

    def select(self, structures: Tensor) -> PairField:
        atoms, batch = kept(structures, self.batch)
        out = PairField(batch, self.strength[atoms])
        out.stiff, out.rest, out.soft = self.stiff, self.rest, self.soft
        return out

    def join(self, others: list[PairField]) -> PairField:
        parts = [self, *others]
        strength = torch.cat([p.strength for p in parts])
        out = PairField(joined(parts), strength)
        out.stiff, out.rest, out.soft = self.stiff, self.rest, self.soft
        return out

    def freeze(self, positions: Tensor) -> PairField:
        return self

    def unfreeze(self) -> PairField:
        return self


class SiteField(nn.Module):
    """Absolute coordinates: springs to sites, a rotational (non-conservative) part and a net.

    The parameters are shared by all structures; every atom has its own site.
    """

    translation_invariant = False
    rotation_equivariant = False

    def __init__(self, sites: Tensor, batch: Tensor, curl: float = 0.3, hidden: int = 8):
        super().__init__()
        self.sites, self.batch, self.curl = sites, batch, curl
        generator = torch.Generator().manual_seed(3)
        self.w1 = nn.Parameter(torch.randn(hidden, 3, generator=generator) * 0.7)
        self.w2 = nn.Parameter(torch.randn(3, hidden, generator=generator) * 0.2)
        self.stiff = nn.Parameter(torch.tensor([1.0, 1.7, 0.6]))

    def forward(self, x: Tensor) -> Tensor:
        d = x - self.sites
        turn = torch.stack([-d[:, 1], d[:, 0], torch.zeros_like(d[:, 0])], -1)
        mean = torch.zeros_like(d).index_add(0, self.batch, d)[self.batch] * 0.05
        return -self.stiff * d + self.curl * turn + torch.tanh(d @ self.w1.T) @ self.w2.T - mean

    def select(self, structures: Tensor) -> SiteField:
        atoms, batch = kept(structures, self.batch)
        out = SiteField.__new__(SiteField)
        nn.Module.__init__(out)
        out.sites, out.batch, out.curl = self.sites[atoms], batch, self.curl
        out.w1, out.w2, out.stiff = self.w1, self.w2, self.stiff
        return out

    def join(self, others: list[SiteField]) -> SiteField:
        parts = [self, *others]
        every = torch.ones(int(self.batch.max()) + 1, dtype=torch.bool, device=self.batch.device)
        out = self.select(every)
        out.sites = torch.cat([p.sites for p in parts])
        out.batch = joined(parts)
        return out

    def freeze(self, positions: Tensor) -> SiteField:
        return self

    def unfreeze(self) -> SiteField:
        return self


def calm(field: SiteField) -> None:
    """Make it a gradient, of which the net's part is that of -0.2 sum log cosh(w1 d).

    Without a curl quasi-Newton steps converge soon; with one L-BFGS wanders for hundreds of steps, in
    which it amplifies the last digits, and those depend on the companions.
    """
    field.curl, field.w2.data = 0.0, -0.2 * field.w1.data.T


def random_batch(kind: str, sizes: list[int], seed: int = 0, **options: object):
    """(operator, positions [n, 3], target [n, 3]) for ``kind`` site or pair.

    ``conservative`` makes the site field a gradient, ``device`` says where all of it is, ``fixed`` and
    ``length`` are those of ``structures``; other options go to ``Operator.build``.
    """
    generator = torch.Generator().manual_seed(seed)
    fixed, length = options.pop("fixed", None), options.pop("length", None)
    device = options.pop("device", torch.device("cpu"))
    s = structures(sizes, fixed=fixed, length=length).on(device)
    x = torch.randn(sum(sizes), 3, generator=generator)
    conservative = options.pop("conservative", False)
    if kind == "pair":
        field = PairField(s.batch)
    else:
        curl = 0.0 if conservative else 0.3
        sites = torch.randn(sum(sizes), 3, generator=generator).to(device)
        field = SiteField(sites, s.batch, curl)
        if conservative:
            calm(field)
    operator = Operator.build(field.to(device), s, **({"alpha": 0.1} | options))
    target = x + 0.3 * torch.randn(x.shape, generator=generator)
    return operator, x.to(device), target.to(device)


def dense_jacobian(operator: Operator, x: Tensor) -> Tensor:
    """dG/dX at x as a [3n, 3n] matrix by forward-mode autograd, free of any VJP of ours."""
    flat = lambda z: operator(z.view(-1, 3)).flatten()  # noqa: E731
    return torch.func.jacfwd(flat)(x.flatten()).detach()


def central_differences(function, x: Tensor, lam: Tensor, step: float) -> Tensor:
    """lam^T d function / dx, component by component: [n, 3]."""
    numeric = torch.zeros_like(x)
    with torch.no_grad():
        for i in range(x.numel()):
            e = torch.zeros(x.numel())
            e[i] = step
            e = e.view_as(x)
            numeric.view(-1)[i] = ((function(x + e) - function(x - e)) * lam).sum() / (2 * step)
    return numeric


def grads(operator: Operator) -> Tensor:
    """All parameter gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in operator.field.parameters() if p.grad is not None])


def zero(operator: Operator) -> None:
    for p in operator.field.parameters():
        p.grad = None
