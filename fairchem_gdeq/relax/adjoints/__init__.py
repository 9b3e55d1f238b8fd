"""Phase 3 of Algorithm 1: solvers of the adjoint system (eq. 4), one file each."""

from fairchem_gdeq.relax.adjoints.base import ADJOINTS, Adjoint, AdjointSolution
from fairchem_gdeq.relax.adjoints.gmres import GMRES
from fairchem_gdeq.relax.adjoints.identity import Identity
from fairchem_gdeq.relax.adjoints.neumann import Neumann

__all__ = ["ADJOINTS", "GMRES", "Adjoint", "AdjointSolution", "Identity", "Neumann"]
