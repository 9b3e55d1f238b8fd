"""What can go wrong with a target: the adsorbate falls apart or leaves the surface.

As OC20 flags its relaxations; such rows stay in the set.
"""

from __future__ import annotations

from ase import Atoms

from fairchem_gdeq.evaluation.anomalies import DESORBED, DISSOCIATED, anomalies


def anomaly(start: Atoms, target: Atoms) -> str:
    """``"dissociated"``: a bond of the adsorbate in ``start`` is none in ``target``;
    ``"desorbed"``: no atom of it touches the metal in ``target``; else ``""``.
    """
    found = anomalies(start, target)
    return next((kind for kind in (DISSOCIATED, DESORBED) if kind in found), "")
