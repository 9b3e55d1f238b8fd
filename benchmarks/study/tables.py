"""What is run: arms of a table, at its points, with its seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import yaml

HERE = Path(__file__).parent
OUTCOMES = HERE / "outcomes"


@dataclass(frozen=True)
class Run:
    """One arm of a table, at one of its points, with one seed.

    Attributes:
        table, arm, point, seed: which; the point is empty in a table without.
        config: a file in ``configs``.
        overrides: of it.
        fairchem: the line that the config is of, 2 or 1.
    """

    table: str
    arm: str
    point: str
    seed: int
    config: str
    overrides: tuple[str, ...]
    fairchem: int = 2

    @property
    def name(self) -> str:
        """Of its folder and file."""
        return "_".join(filter(None, (self.arm, self.point, f"seed{self.seed}")))

    @property
    def kept(self) -> Path:
        """Where its outcome is kept."""
        return OUTCOMES / self.table / f"{self.name}.json"


class Other(TypedDict):
    """An arm of another config: a file in ``configs``, and its overrides."""

    config: str
    overrides: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Runs that are compared with each other.

    Attributes:
        name: of the table.
        config: a file in ``configs``.
        seeds: numbers.
        arms: overrides of each; at each point the others are compared with the first.
        overrides: of all arms.
        points: overrides of each, for a study of one setting; {point} in any override is its name.
        point: what the points are, for the axis of the picture.
        others: arms that have a config of their own, and none of ``overrides`` but theirs.
        fairchem: the line that the config is of, 2 or 1.
        patch: a file in ``benchmarks/patches`` with what its runs need and the package has not.
    """

    name: str
    config: str
    seeds: Sequence[int]
    arms: Mapping[str, Sequence[str]]
    overrides: Sequence[str] = ()
    points: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"": ()})
    point: str = ""
    others: Mapping[str, Other] = field(default_factory=dict)
    fairchem: int = 2
    patch: str = ""

    @property
    def first(self) -> str:
        """The arm that the others are compared with."""
        return next(iter(self.arms))

    @property
    def every(self) -> Sequence[str]:
        """Names of all arms."""
        return (*self.arms, *self.others)

    def run(self, arm: str, point: str, seed: int) -> Run:
        """One of its runs."""
        if other := self.others.get(arm):
            config, overrides = other["config"], (*self.points[point], *other["overrides"])
        else:
            config, overrides = self.config, (*self.overrides, *self.points[point], *self.arms[arm])
        named = tuple(each.replace("{point}", point) for each in overrides)
        return Run(self.name, arm, point, seed, config, named, self.fairchem)

    def runs(self) -> Iterator[Run]:
        """All of them, seed by seed."""
        for seed in self.seeds:
            for point in self.points:
                for arm in self.every:
                    yield self.run(arm, point, seed)


def read_tables() -> dict[str, Table]:
    """Those of ``tables.yaml``."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "tables.yaml").read_text())
    for entry in entries.values():
        if "points" in entry:
            entry["points"] = {str(name): extra for name, extra in entry["points"].items()}
    return {name: Table(name, **entry) for name, entry in entries.items()}
