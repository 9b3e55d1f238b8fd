"""Small trajectories and models that the tests of RelaxNet share."""

import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from fairchem_gdeq.relax import Structures
from fairchem_gdeq.testing.fairchem2 import small

SPRING = 2.0  # eV/Angstrom^2


def restless(double=True, seed=0, **changes):
    """A random small RelaxNet whose ODE does not begin at rest."""
    kept = small.MODELS["relaxnet"]
    small.MODELS["relaxnet"] = kept | {"backbone": kept["backbone"] | changes}
    try:
        model = small.model("relaxnet", double, seed)
    finally:
        small.MODELS["relaxnet"] = kept
    with torch.no_grad():
        for rate in filter(None, (model.backbone.push, model.backbone.latent)):
            rate[-1].weight.normal_(std=0.3)
        for p in model.output_heads.energy.energy[-1].parameters():
            p.mul_(3.0)
    return model


def structures_of(batch):
    """The method's view of it, with standard masses."""
    masses = torch.where(batch.atomic_numbers == 14, 28.085, 72.63).to(batch.pos)
    return Structures(batch.batch, batch.fixed == 0, masses, batch.cell, batch.pbc)


def relaxation(start, sites, frames):
    """Frames of atoms on springs to their sites, halfway nearer in each."""
    images = []
    for k in range(frames):
        image = start.copy()
        image.positions = sites + (start.positions - sites) * 0.5**k
        away = image.positions - sites
        image.calc = SinglePointCalculator(
            image, energy=-5.0 * len(image) + SPRING / 2 * (away**2).sum(), forces=-SPRING * away
        )
        images.append(image)
    return images


def write_trajectories(folder, trajectories, shuffle=True):
    """Frames as the repository's data have them; ``trajectories`` is frames by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (image, f"{name}_{3 * step}")
        for name, images in trajectories.items()
        for step, image in enumerate(images)
    ]
    if shuffle:
        np.random.default_rng(0).shuffle(rows)
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for image, sid in rows:
            database.write(image, data={"sid": sid})
    np.savez(folder / "metadata.npz", natoms=np.array([len(image) for image, _ in rows]))


def silicon_trajectories(count, seed=0, frames=4):
    """Of rattled cells to their sites, by name."""
    found = {}
    for i, start in enumerate(small.silicon(count, seed)):
        rng = np.random.default_rng(seed + i)
        sites = start.positions + rng.normal(scale=0.05, size=start.positions.shape)
        found[f"cell_{i}"] = relaxation(start, sites, frames)
    return found
