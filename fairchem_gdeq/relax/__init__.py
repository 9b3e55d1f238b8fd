"""The G-DEQ method in plain torch; read it beside the paper, in the order of Algorithm 1.

operator (eq. 1), loss (eq. 2), guidance (eq. 3), equilibrium and solvers, adjoints (eq. 4), signals
(eq. 5). Solvers, adjoints, losses and signals are parts that a config names, or gives by their path.
"""

import sys
from inspect import Signature, signature
from types import ModuleType
from typing import Any

from fairchem_gdeq.relax.adjoints import (
    ADJOINTS,
    GMRES,
    Adjoint,
    AdjointSolution,
    Identity,
    Neumann,
)
from fairchem_gdeq.relax.causes import Cause
from fairchem_gdeq.relax.descent import Descent
from fairchem_gdeq.relax.equilibrium import Solution, solve
from fairchem_gdeq.relax.loss import (
    LOSSES,
    DeltaQ,
    LogDeltaQ,
    Loss,
    delta_q,
    free_displacement,
    max_displacement,
)
from fairchem_gdeq.relax.operator import ForceField, Operator
from fairchem_gdeq.relax.settings import Relaxer
from fairchem_gdeq.relax.signals import (
    BPTT,
    GDEQ,
    SIGNALS,
    Implicit,
    Signal,
    SignalReport,
    TruncatedBPTT,
    make_signal,
)
from fairchem_gdeq.relax.solvers import (
    FIRE,
    LBFGS,
    SOLVERS,
    Anderson,
    Picard,
    Solver,
    SolverState,
    per_atom,
    per_structure,
)
from fairchem_gdeq.relax.structures import Structures

__all__ = [
    "ADJOINTS",
    "BPTT",
    "FIRE",
    "GDEQ",
    "GMRES",
    "LBFGS",
    "LOSSES",
    "SIGNALS",
    "SOLVERS",
    "Adjoint",
    "AdjointSolution",
    "Anderson",
    "Cause",
    "DeltaQ",
    "Descent",
    "ForceField",
    "Identity",
    "Implicit",
    "LogDeltaQ",
    "Loss",
    "Neumann",
    "Operator",
    "Picard",
    "Relaxer",
    "Signal",
    "SignalReport",
    "Solution",
    "Solver",
    "SolverState",
    "Structures",
    "TruncatedBPTT",
    "delta_q",
    "free_displacement",
    "make_signal",
    "max_displacement",
    "per_atom",
    "per_structure",
    "solve",
]


def __getattr__(name: str) -> object:
    """``Method`` of version 0.1, which configs may name for one more release."""
    if name == "Method":
        from fairchem_gdeq.relax.deprecated import Method

        return Method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Callable(ModuleType):
    """Lets ``fairchem_gdeq.relax(structures, potential)`` be the function of that name.

    The import system puts this package into that attribute, so it has to be both. Type checkers read
    of the function alone in ``fairchem_gdeq/__init__.py``.
    """

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Relax structures with a potential: ``help(fairchem_gdeq.api.relax)`` says all."""
        from fairchem_gdeq.api import relax

        return relax(*args, **settings)

    @property
    def __signature__(self) -> Signature:
        """That of the function, for notebooks and editors."""
        from fairchem_gdeq.api import relax

        return signature(relax)


sys.modules[__name__].__class__ = _Callable
