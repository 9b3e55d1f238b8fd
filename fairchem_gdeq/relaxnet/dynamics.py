"""The neural ODE: dx/dt = u, du/dt = F/m, and for explicit evolution dh/dt = MLP(h) (RelaxNet, 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from torch import Tensor, nn

from fairchem_gdeq.extras import require
from fairchem_gdeq.frozen.cells import inverse_cells, with_positions
from fairchem_gdeq.models.relaxnet import RelaxNetBackbone, RelaxNetHead
from fairchem_gdeq.models.relaxnet.geometry import Geometry, Graph
from fairchem_gdeq.models.relaxnet.head import gradient_forces
from fairchem_gdeq.relax import Structures

SKIN = 0.5  # Angstrom
FARTHEST = 20.0  # Angstrom: an atom that goes farther has left every bound
# At x, u and where it evolves h: [n, 3], [n, 3], [n, width].
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Path:
    """What the ODE predicts of a batch at T equidistant frames of pseudotime.

    Attributes:
        positions: [T, n, 3], Angstrom; the first are those of the start.
        energies: [T, s], eV.
        forces: [T, n, 3], eV/Angstrom, zero on fixed atoms.
        evaluations: of forces, for one structure.
    """

    positions: Tensor
    energies: Tensor
    forces: Tensor
    evaluations: int


@dataclass(frozen=True)
class Evolution:
    """How the ODE of a RelaxNet is integrated. Pseudotime runs from 0 to 1.

    Attributes:
        frames: T, at which energies and forces are predicted, the start and the end among them.
        steps: of rk4 from one frame to the next.
        adjoint: gradients by torchdiffeq's adjoint: memory does not grow with the steps, the gradient is
            that of the ODE and not that of its discretization.
    """

    frames: int = 5
    steps: int = 1
    adjoint: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a setting that cannot be meant.
        """
        if self.frames < 2 or self.steps < 1:
            raise ValueError(
                f"frames={self.frames}, steps={self.steps}: expected at least 2 frames, and 1 step from "
                "one to the next"
            )

    @property
    def evaluations(self) -> int:
        """Of forces, for a path: four a step of rk4, and one at each frame."""
        return 4 * self.steps * (self.frames - 1) + self.frames

    def __call__(self, model: HydraModel, batch: AtomicData, structures: Structures) -> Path:
        """Evolve a batch from its positions; differentiable where gradients are on.

        Args:
            model: a ``RelaxNetBackbone`` with a ``RelaxNetHead``.
            batch: the starts.
            structures: which atoms are free, and their masses.

        Raises:
            ImportError: torchdiffeq is not installed; names the extra.
            ValueError: the model is another one.
        """
        integrate = require("torchdiffeq", "torchdiffeq", "relaxnet")
        rate = Rate(model, batch, structures)
        start = rate.start()
        times = torch.linspace(0, 1, self.frames, dtype=start[0].dtype, device=start[0].device)
        options = {"step_size": 1 / (self.steps * (self.frames - 1))}
        if self.adjoint and torch.is_grad_enabled():
            parameters = tuple(p for p in rate.parameters() if p.requires_grad)
            states = integrate.odeint_adjoint(
                rate,
                start,
                times,
                method="rk4",
                options=options,
                adjoint_options=options,
                adjoint_params=parameters,
            )
        else:
            states = integrate.odeint(rate, start, times, method="rk4", options=options)
        found = [rate.at(tuple(each[k] for each in states)) for k in range(self.frames)]
        energies, forces = (torch.stack(column) for column in zip(*found, strict=True))
        return Path(states[0], energies, forces, self.evaluations)


class Rate(nn.Module):
    """The right side of the ODE for one batch.

    The graph is that of the positions of the moment at every evaluation. Messages fade to nothing at the
    cutoff, so the energy is as smooth as if all pairs were in it. What fairchem builds is ``SKIN`` wider,
    and is built anew when an atom has moved by half of that.
    """

    def __init__(self, model: HydraModel, batch: AtomicData, structures: Structures) -> None:
        """
        Raises:
            ValueError: the model is no RelaxNet.
        """
        super().__init__()
        heads = [head for head in model.output_heads.values() if isinstance(head, RelaxNetHead)]
        if not isinstance(model.backbone, RelaxNetBackbone) or len(heads) != 1:
            found = ", ".join(type(head).__name__ for head in model.output_heads.values())
            raise ValueError(
                "expected a RelaxNetBackbone with one RelaxNetHead, found "
                f"{type(model.backbone).__name__} with {found}"
            )
        self.backbone, self.head = model.backbone, heads[0]
        self.explicit = self.backbone.latent is not None
        self.batch = with_positions(batch, batch.pos)
        self.batch.inverse_cell = inverse_cells(batch, batch.pbc)
        self._wide: Graph | None = None
        self._built = self.batch.pos
        self.free = structures.free[:, None]
        self.unit = self.backbone.duration**2 / structures.masses[:, None]

    def start(self) -> State:
        """x(0), u(0) and h(0) where that evolves."""
        positions = self.batch.pos
        geometry = self._geometry(positions)
        embedding = self.backbone.encode(self.batch.atomic_numbers, geometry)
        velocity = self.backbone.velocity(embedding, geometry) * self.free
        return (positions, velocity, embedding) if self.explicit else (positions, velocity)

    def at(self, state: State) -> tuple[Tensor, Tensor]:
        """Energies [s] and forces [n, 3] of a state, those of fixed atoms zero."""
        positions, _, *embedding = state
        differentiable = torch.is_grad_enabled()
        with _marked(positions) as place:
            geometry = self._geometry(place)
            numbers = self.batch.atomic_numbers
            h = embedding[0] if self.explicit else self.backbone.encode(numbers, geometry)
            count = len(self.batch.natoms)
            energy = self.head.energies(h, geometry, numbers, self.batch.batch, count)
            forces = gradient_forces(energy, place, differentiable)
        if not differentiable:
            energy = energy.detach()
        return energy, forces * self.free

    def forward(self, time: Tensor, state: State) -> State:
        """dx/dt, du/dt and where it evolves dh/dt."""
        _, velocity, *embedding = state
        _, forces = self.at(state)
        rates = (velocity * self.free, self.unit * forces)
        if self.backbone.latent is None:
            return rates
        return (*rates, self.backbone.latent(*embedding))

    def _geometry(self, positions: Tensor) -> Geometry:
        places = positions.detach()
        if self._wide is None or bool((_ways(places, self._built) > SKIN / 2).any()):
            # An atom that is lost has no neighbours to look for, and far away it takes memory to look.
            near = _ways(places, self.batch.pos) < FARTHEST
            self._built = torch.where(near[:, None], places, self.batch.pos)
            self._wide = self.backbone.graph(with_positions(self.batch, self._built), SKIN)
        graph = self._wide.within(self.backbone.cutoff, positions)
        geometry: Geometry = self.backbone.measure(graph, positions)
        return geometry


def _ways(positions: Tensor, before: Tensor) -> Tensor:
    """How far atoms have gone [n], Angstrom; not a number where one is lost."""
    ways: Tensor = torch.linalg.vector_norm(positions - before, dim=-1)
    return ways


@contextmanager
def _marked(positions: Tensor) -> Iterator[Tensor]:
    """The positions as what an energy can be differentiated by, inside also where gradients are off."""
    place = positions if torch.is_grad_enabled() else positions.detach()
    with torch.enable_grad():
        yield place if place.requires_grad else place.detach().requires_grad_()
