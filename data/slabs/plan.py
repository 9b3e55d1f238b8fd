"""Which adsorbates on which metals are relaxed, in which split, and in which order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from systems import System, more_titanium, other_metals, titanium

SEED = 2025
TEST, VAL = 0.2, 0.15  # parts of the 40 titanium systems of two sites a fragment

# The second round. With the first it makes 200 / 40 / 60 on titanium, a few of which may not converge.
TEST_MORE, VAL_MORE = 23, 15  # of the 80 new systems, each in two orientations
TRAINED_MORE = 62  # another orientation for so many of the first round's training systems
AGAIN = 100  # their turn, and that of held-out ones: above those that explore.py draws


def plan() -> dict[str, list[System]]:
    """The systems of all splits. No metal, fragment and site together are in two of them.

    What is held out in one round is held out in the other: ``val`` and ``val_more`` are one split in
    two folders, as are ``train`` and ``train_more``, ``test`` and ``test_more``.
    """
    first = splits()
    return first | second_round(first)


def splits() -> dict[str, list[System]]:
    """The first round: test and validation out of 40 systems of two sites a fragment; all else trains."""
    systems = titanium(sites=2)
    order = np.random.default_rng(SEED).permutation(len(systems))
    test, val = round(TEST * len(order)), round(VAL * len(order))
    held = {"test": order[:test], "val": order[test : test + val]}
    out = {name: [systems[i] for i in sorted(which)] for name, which in held.items()}
    train = [s for s in titanium(sites=4) if s not in out["test"] + out["val"]]
    return out | {"train": train, "other_metals": other_metals()}


def second_round(first: dict[str, list[System]]) -> dict[str, list[System]]:
    """New fragments in two orientations, and the systems of the first round in another one.

    New systems are dealt out so that each split has all fragments and sites about equally often.
    """
    rng = np.random.default_rng(SEED + 1)
    systems = more_titanium()
    pool = [systems[i] for i in rng.permutation(len(systems))]
    sizes = {"test_more": TEST_MORE, "val_more": VAL_MORE}
    sizes["train_more"] = len(pool) - sum(sizes.values())
    new: dict[str, list[System]] = {split: [] for split in sizes}
    seen = {split: Counter[str]() for split in sizes}
    for _ in systems:
        behind = min(sizes, key=lambda s: len(new[s]) / sizes[s])
        counted = seen[behind]
        chosen = min(pool, key=lambda s: (counted[s.fragment], counted[s.site]))
        counted.update([chosen.fragment, chosen.site])
        pool.remove(chosen)
        new[behind].append(chosen)

    trained = [first["train"][i] for i in rng.permutation(len(first["train"]))][:TRAINED_MORE]
    before = {"test_more": first["test"], "val_more": first["val"], "train_more": trained}
    return {
        split: new[split]
        + [replace(system, turn=AGAIN) for system in before[split]]
        + [replace(system, turn=1) for system in new[split]]
        for split in sizes
    }


def in_order(systems: dict[str, list[System]]) -> list[tuple[str, System]]:
    """Every system with its split: the first round, then validation and test, then training.

    Splits of one stage take turns, so that any beginning of it is of use.
    """
    stages = {"test_more": 1, "val_more": 1, "train_more": 2}
    entries = [
        (stages.get(split, 0), k / len(members), split, system)
        for split, members in systems.items()
        for k, system in enumerate(members)
    ]
    return [(split, system) for *_, split, system in sorted(entries, key=lambda entry: entry[:2])]
