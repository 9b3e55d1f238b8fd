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
from typing import Any

API = "fairchem_gdeq.api"
METHOD = "fairchem_gdeq.relax"
# Where a name comes from, once it is used.
_PLACES = {
    "Code": API,
    "Evaluation": API,
    "Forces": API,
    "Potential": API,
    "Relaxations": API,
    "Run": API,
    "evaluate": API,
    "finetune": API,
    "from_callable": API,
    "load_potential": API,
    "Anderson": METHOD,
    "BPTT": METHOD,
    "FIRE": METHOD,
    "GDEQ": METHOD,
    "GMRES": METHOD,
    "Implicit": METHOD,
    "LBFGS": METHOD,
    "Picard": METHOD,
    "Relaxer": METHOD,
    "TruncatedBPTT": METHOD,
}

__all__ = ["__version__", "relax"]
__all__ += list(_PLACES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fairchem-gdeq")
    if name == "relax":
        return import_module("fairchem_gdeq.relax")  # which can be called
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
