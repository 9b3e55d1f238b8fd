"""Adsorbates of N, C, O and H on metal slabs: what is put where before it is relaxed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bcc110, fcc111, hcp0001, molecule
from ase.constraints import FixAtoms

# Fragment: (molecule of ASE's G2 set or element, index of the atom that binds).
FRAGMENTS = {
    "H": ("H", 0),
    "C": ("C", 0),
    "N": ("N", 0),
    "O": ("O", 0),
    "CH": ("CH", 0),
    "CH2": ("CH2_s1A1d", 0),
    "CH3": ("CH3", 0),
    "NH": ("NH", 0),
    "NH2": ("NH2", 0),
    "NH3": ("NH3", 0),
    "OH": ("OH", 0),
    "H2O": ("H2O", 0),
    "CO": ("CO", 1),
    "NO": ("NO", 0),
    "CN": ("CN", 0),
    "N2": ("N2", 0),
    "CHO": ("HCO", 0),
    "CH3O": ("CH3O", 1),
    "C2H": ("CCH", 0),
    "C2H2": ("C2H2", 0),
}
MORE_FRAGMENTS = {  # of the second round
    "H2": ("H2", 0),
    "O2": ("O2", 0),
    "CO2": ("CO2", 1),
    "N2O": ("N2O", 0),
    "NO2": ("NO2", 0),
    "HCN": ("HCN", 1),
    "H2CO": ("H2CO", 0),
    "CH2OH": ("H2COH", 0),
    "HCOOH": ("HCOOH", 0),
    "CH3OH": ("CH3OH", 1),
    "H2O2": ("H2O2", 0),
    "N2H4": ("N2H4", 0),
    "C2H3": ("C2H3", 1),
    "C2H4": ("C2H4", 0),
    "C2H5": ("C2H5", 1),
    "H2CCO": ("H2CCO", 0),
    "CH3CO": ("CH3CO", 5),
    "CH3CN": ("CH3CN", 2),
    "CH3NH2": ("H3CNH2", 1),
    "C2H5O": ("CH3CH2O", 2),
}
SITES = {"hcp0001": ("ontop", "bridge", "fcc", "hcp"), "fcc111": ("ontop", "bridge", "fcc", "hcp")}
SITES["bcc110"] = ("ontop", "longbridge", "shortbridge", "hollow")
METALS = {
    "Ti": "hcp0001",
    "Zr": "hcp0001",
    "Ru": "hcp0001",
    "Co": "hcp0001",
    "Cu": "fcc111",
    "Ni": "fcc111",
    "Pd": "fcc111",
    "Pt": "fcc111",
    "Ag": "fcc111",
    "Mo": "bcc110",
}
BUILDERS = {"hcp0001": hcp0001, "fcc111": fcc111, "bcc110": bcc110}
HEIGHT = {"ontop": 2.0, "bridge": 1.7, "longbridge": 1.6, "shortbridge": 1.7}  # else a hollow
HOLLOW = 1.4  # Angstrom above the top layer


@dataclass(frozen=True)
class System:
    """A fragment over a site of a metal's closest-packed surface.

    Other ``turn``s are other draws of its orientation, its height and the rattling.
    """

    metal: str
    fragment: str
    site: str
    turn: int = 0

    @property
    def name(self) -> str:
        name = f"{self.metal}-{self.fragment}-{self.site}"
        return f"{name}-turn{self.turn}" if self.turn else name


def titanium(sites: int) -> list[System]:
    """Every fragment on titanium, at the first two sites of its list or (4) at all."""
    out: list[System] = []
    names = SITES[METALS["Ti"]]
    for i, fragment in enumerate(FRAGMENTS):
        first = [0, 1 + i % 3]
        order = first + [k for k in range(4) if k not in first]
        out += [System("Ti", fragment, names[(i + k) % 4]) for k in order[:sites]]
    return out


def more_titanium() -> list[System]:
    """The fragments of the second round on titanium, at all four sites."""
    names = SITES[METALS["Ti"]]
    return [System("Ti", fragment, site) for fragment in MORE_FRAGMENTS for site in names]


def other_metals() -> list[System]:
    """Every fragment once, on one of the other metals."""
    out: list[System] = []
    others = [metal for metal in METALS if metal != "Ti"]
    for i, fragment in enumerate(FRAGMENTS):
        metal = others[i % len(others)]
        out.append(System(metal, fragment, SITES[METALS[metal]][(i // 2) % 4]))
    return out


def _fragment(name: str, rng: np.random.Generator) -> tuple[Atoms, int]:
    """The fragment with its binding atom below the rest, turned at random about the normal."""
    formula, binding = (FRAGMENTS | MORE_FRAGMENTS)[name]
    atoms = Atoms(formula) if formula in ("H", "C", "N", "O") else molecule(formula)
    if len(atoms) > 1:
        axis = atoms.positions.mean(0) - atoms.positions[binding]
        if np.linalg.norm(axis) > 1e-3:
            atoms.rotate(axis, "z", center=atoms.positions[binding])
        atoms.rotate(rng.uniform(0, 360), "z", center=atoms.positions[binding])
        atoms.rotate(rng.uniform(-25, 25), "x", center=atoms.positions[binding])
    return atoms, binding


def build(system: System) -> Atoms:
    """The start: three layers of 3 x 3 atoms, the lower two fixed, 16 Angstrom of vacuum.

    Tags are those of OC20: 0 below the surface, 1 surface, 2 adsorbate.
    """
    digest = hashlib.sha256(system.name.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    slab = BUILDERS[METALS[system.metal]](system.metal, size=(3, 3, 3), vacuum=8.0)
    slab.set_tags(np.where(slab.get_tags() == 1, 1, 0))  # ASE counts layers from the top
    surface = slab.get_tags() == 1
    slab.positions[surface] += rng.normal(scale=0.05, size=(surface.sum(), 3))
    adsorbate, binding = _fragment(system.fragment, rng)
    adsorbate.set_tags(2)
    height = HEIGHT.get(system.site, HOLLOW) + rng.uniform(-0.1, 0.3)
    add_adsorbate(slab, adsorbate, height, system.site, mol_index=binding)
    slab.pbc = True
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 0))
    slab.info = {}
    return slab
