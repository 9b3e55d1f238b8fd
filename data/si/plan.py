"""Which silicon defects are relaxed, in which split, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from defects import Defect, catalogue, further

SPLITS = {"train": 190, "val": 30, "test": 80}
SINGLE_DISTORTION = {"sub+sub1": 31, "sub+int_T": 31, "sub+int_BC": 30}  # pairs drawn of each kind
MORE_PAIRS = {"sub+sub1": 28, "sub+int_T": 50, "sub+int_BC": 50}  # training starts without frames
FRAMES = 16  # kept of each relaxation of the first round
SEED = 2026

# The second round. With the first it makes 1,000 / 120 / 240, a few of which may not converge.
HELD = {"val_more": 94, "test_more": 166}
TRAIN_MORE = 700
HELD_PART = 1 / 3  # of a kind's defects, at most: training must know every kind
FRAMES_MORE = 12


@dataclass(frozen=True)
class Job:
    """One relaxation: a defect with one distortion, in one split.

    Attributes:
        split: the folder that its row goes to.
        defect: species and site.
        variant: number of the distortion, part of its random seed.
        frames: how many structures of its path are kept with forces, at most.
    """

    split: str
    defect: Defect
    variant: int
    frames: int = FRAMES

    @property
    def sid(self) -> str:
        return f"{self.defect.name}_{self.variant}"


def plan() -> list[Job]:
    """All relaxations, the first round first. No defect (species and site) is in two splits.

    What is held out in one round is held out in the other: ``val`` and ``val_more`` are one split in
    two folders, as are ``train`` and ``train_more``, ``test`` and ``test_more``.
    """
    first = first_round()
    return first + second_round(first)


def first_round() -> list[Job]:
    """The 428 relaxations of ``train``, ``val`` and ``test``, training first."""
    rng = np.random.default_rng(SEED)
    groups: list[list[tuple[Defect, int]]] = []
    by_kind: dict[str, list[Defect]] = {}
    for defect in catalogue():
        by_kind.setdefault(defect.kind, []).append(defect)
    for kind, defects in by_kind.items():
        if kind in SINGLE_DISTORTION:
            chosen = rng.choice(len(defects), SINGLE_DISTORTION[kind], replace=False)
            groups += [[(defects[i], 0)] for i in chosen]
        else:
            groups += [[(defect, 0), (defect, 1)] for defect in defects]
    rng.shuffle(groups)  # type: ignore[arg-type]
    jobs: list[Job] = []
    names = iter(SPLITS)
    split = next(names)
    for group in groups:
        if sum(job.split == split for job in jobs) >= SPLITS[split]:
            split = next(names, split)
        frames = 0 if split == "test" else FRAMES
        jobs += [Job(split, defect, variant, frames) for defect, variant in group]
    return jobs + more_training(jobs, by_kind)


def more_training(jobs: list[Job], by_kind: dict[str, list[Defect]]) -> list[Job]:
    """Starts and targets for fine-tuning only, of pairs that no split has.

    The base potentials do not see them, so their frames are not kept.
    """
    rng = np.random.default_rng(SEED + 1)
    used = {job.defect for job in jobs}
    more = []
    for kind, count in MORE_PAIRS.items():
        unused = [defect for defect in by_kind[kind] if defect not in used]
        chosen = rng.choice(len(unused), count, replace=False)
        more += [Job("train", unused[i], 0, frames=0) for i in chosen]
    return more


def second_round(first: list[Job]) -> list[Job]:
    """Validation and test, taking turns, then training; any beginning of it is of use.

    Held out are only defects that the first round has not. Training gets the rest of them, and one
    more distortion of those it has.
    """
    rng = np.random.default_rng(SEED + 2)
    used = {job.defect for job in first}
    by_kind: dict[str, list[Defect]] = {}
    for defect in [*catalogue(), *further()]:
        if defect not in used:
            by_kind.setdefault(defect.kind, []).append(defect)
    candidates: list[Defect] = []
    rest: list[Defect] = []
    for defects in by_kind.values():
        shuffled = [defects[i] for i in rng.permutation(len(defects))]
        part = int(HELD_PART * len(shuffled))
        candidates += shuffled[:part]
        rest += shuffled[part:]

    jobs: list[Job] = []
    seen = {split: Counter[object]() for split in HELD}
    for _ in range(sum(HELD.values())):
        behind = min(HELD, key=lambda s: sum(job.split == s for job in jobs) / HELD[s])
        defect = least_seen(candidates, seen[behind])
        candidates.remove(defect)
        jobs.append(Job(behind, defect, 0, FRAMES_MORE))

    trained = [job for job in first if job.split == "train"]
    distortions = Counter(job.defect for job in trained)
    pool = list(distortions) + rest + candidates
    in_training: Counter[object] = Counter(s for job in trained for s in sites(job.defect))
    for _ in range(TRAIN_MORE):
        defect = least_seen(pool, in_training)
        pool.remove(defect)
        jobs.append(Job("train_more", defect, distortions[defect], FRAMES_MORE))
    return jobs


@cache
def sites(defect: Defect) -> tuple[tuple[str, str], ...]:
    """Each element of the defect with the kind of site it is on; all substitutional ones are one."""
    filled = [part for part in defect.kind.split("+") if part.startswith(("sub", "int"))]
    names = ["sub" if part.startswith("sub") else part for part in filled]
    return tuple(zip(names, defect.species, strict=True))


def least_seen(pool: Iterable[Defect], seen: Counter[object]) -> Defect:
    """The defect whose kind, then whose elements on their sites, were drawn least; it is counted.

    Drawn in this order, every prefix covers kinds, and elements on each kind of site, evenly.
    """
    chosen = min(pool, key=lambda d: (seen[d.kind], sum(seen[site] for site in sites(d))))
    seen.update([chosen.kind, *sites(chosen)])
    return chosen
