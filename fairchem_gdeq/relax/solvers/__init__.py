"""How a structure is moved towards its equilibrium: one file each, any number of structures at once."""

from fairchem_gdeq.relax.solvers.anderson import Anderson
from fairchem_gdeq.relax.solvers.base import SOLVERS, Solver, SolverState, per_atom, per_structure
from fairchem_gdeq.relax.solvers.fire import FIRE
from fairchem_gdeq.relax.solvers.lbfgs import LBFGS
from fairchem_gdeq.relax.solvers.picard import Picard

__all__ = [
    "FIRE",
    "LBFGS",
    "SOLVERS",
    "Anderson",
    "Picard",
    "Solver",
    "SolverState",
    "per_atom",
    "per_structure",
]
