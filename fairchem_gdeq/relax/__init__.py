"""The G-DEQ method in plain torch; read it beside the paper, in the order of Algorithm 1.

operator (eq. 1), objective (eq. 2), guidance (eq. 3), solvers, adjoint (eq. 4), step (eq. 5).
"""

import sys
from types import ModuleType
from typing import Any

from fairchem_gdeq.batching.streams import Request, Stream
from fairchem_gdeq.relax.flight import Course, Outcome
from fairchem_gdeq.relax.objective import delta_q, free_displacement, max_displacement
from fairchem_gdeq.relax.operator import ForceField, Operator
from fairchem_gdeq.relax.solvers import Solution, make_solver, solve
from fairchem_gdeq.relax.step import SIGNALS, Method, SignalReport
from fairchem_gdeq.relax.structures import Structures

__all__ = [
    "SIGNALS",
    "Course",
    "ForceField",
    "Method",
    "Operator",
    "Outcome",
    "Request",
    "SignalReport",
    "Solution",
    "Stream",
    "Structures",
    "delta_q",
    "free_displacement",
    "make_solver",
    "max_displacement",
    "solve",
]


class _Callable(ModuleType):
    """Lets ``fairchem_gdeq.relax(structures, potential)`` be the function of that name.

    The import system puts this package into that attribute, so it has to be both.
    """

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """``fairchem_gdeq.api.relax``."""
        from fairchem_gdeq.api import relax

        return relax(*args, **settings)


sys.modules[__name__].__class__ = _Callable
