"""The Python interface, ASE structures in and out; ``fairchem_gdeq`` has all of it (fairchem-core 2)."""

from fairchem_gdeq.api.callables import from_callable
from fairchem_gdeq.api.evaluating import Evaluation, evaluate
from fairchem_gdeq.api.finetuning import Run, finetune
from fairchem_gdeq.api.forces import Forces
from fairchem_gdeq.api.job import Code
from fairchem_gdeq.api.potential import Potential, load_potential
from fairchem_gdeq.api.relaxing import Relaxations, relax

__all__ = [
    "Code",
    "Evaluation",
    "Forces",
    "Potential",
    "Relaxations",
    "Run",
    "evaluate",
    "finetune",
    "from_callable",
    "load_potential",
    "relax",
]
