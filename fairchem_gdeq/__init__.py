"""Fine-tune a potential for structural relaxation, through its own relaxations.

    import fairchem_gdeq as gdeq

    potential = gdeq.load_potential("esen.pt")
    found = gdeq.relax(list_of_atoms, potential)
    run = gdeq.finetune(potential, starts, targets, validation=(more_starts, more_targets))
    gdeq.evaluate({"base": run.base, "tuned": run.best}, test_starts, test_targets)

Importing the package loads neither PyTorch nor fairchem; they come with the first name that is used.
``fairchem_gdeq.relax`` is at once that function and the package of the method in plain torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of it
    from fairchem_gdeq.api import (
        Code,
        Evaluation,
        Forces,
        Potential,
        Relaxations,
        Run,
        evaluate,
        finetune,
        from_callable,
        load_potential,
        relax,
    )
    from fairchem_gdeq.relax import (
        BPTT,
        FIRE,
        GDEQ,
        GMRES,
        LBFGS,
        Anderson,
        Implicit,
        Picard,
        Relaxer,
        TruncatedBPTT,
    )

    __version__: str

__all__ = [
    "BPTT",
    "FIRE",
    "GDEQ",
    "GMRES",
    "LBFGS",
    "Anderson",
    "Code",
    "Evaluation",
    "Forces",
    "Implicit",
    "Picard",
    "Potential",
    "Relaxations",
    "Relaxer",
    "Run",
    "TruncatedBPTT",
    "__version__",
    "evaluate",
    "finetune",
    "from_callable",
    "load_potential",
    "relax",
]


if not TYPE_CHECKING:  # they would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("fairchem-gdeq")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        method = import_module("fairchem_gdeq.relax")
        if name == "relax":
            return method  # which can be called
        place = method if name in method.__all__ else import_module("fairchem_gdeq.api")
        return getattr(place, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
