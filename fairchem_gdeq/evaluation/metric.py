r"""What a metric is, and the list of them: the scores and the results table are made from it.

Another metric is an entry more. A config names it by its path, ``metrics=[package.module.WORST]``; from
Python, ``register_metric(WORST)`` adds it::

    WORST = Metric(
        "delta_q_worst",
        "amu^0.5 A",
        lambda columns, basin: float(columns["delta_q"].max()),
        Column("worst\\nDelta Q", "{:.2f}"),
    )
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.relax.registry import at_path
from fairchem_gdeq.relax.structures import Structures

Scores = dict[str, float]  # of one row of the results table, by the metrics' names
Columns = Mapping[str, NDArray[Any]]  # [s] each: every measure of the structures, by its name


class RelaxedBatch(NamedTuple):
    """Relaxed structures beside their targets, in double precision, on the device of the model.

    Attributes:
        positions, target: [n, 3], Angstrom.
        move: [n, 3], Angstrom, from the target, by the nearest image and without the rigid shift
            that is taken out; zero for fixed atoms.
        structures: which atoms belong together, which are free, masses and cells.
    """

    positions: Tensor
    target: Tensor
    move: Tensor
    structures: Structures


def always(scores: Scores) -> bool:
    """A metric that applies to every row."""
    return True


@dataclass(frozen=True)
class Column:
    """A metric's column in the printed table.

    Attributes:
        heading: as it stands there, or made from the basin's criteria; it may have several lines.
        format: of a value, as ``"{:.3f}"``.
        applies: whether a row of these scores shows a value; else there is a dash.
    """

    heading: str | Callable[[Basin], str]
    format: str
    applies: Callable[[Scores], bool] = always

    def title(self, basin: Basin) -> str:
        """The heading for these criteria."""
        return self.heading if isinstance(self.heading, str) else self.heading(basin)

    def cell(self, name: str, scores: Scores) -> str:
        """What a row shows of the metric ``name``."""
        if name not in scores or not self.applies(scores):
            return "-"
        return self.format.format(scores[name])


@dataclass(frozen=True)
class Metric:
    """One number about the relaxed structures of a split.

    Attributes:
        name: its key in the scores and in the results file.
        unit: of the number; empty for counts and fractions.
        summarise: the number, from what was measured on each structure (the fields of ``Record``
            and what metrics ``measure``) and the basin's criteria; None where it cannot be given.
        column: in the printed table; None keeps it out.
        about: what it says something about. The table shows the structures' metrics first.
        measure: measures each structure of a batch, [s], for ``summarise`` and for the records,
            which hold it under the metric's name. None if the fields of ``Record`` suffice.
    """

    name: str
    unit: str
    summarise: Callable[[Columns, Basin], float | None]
    column: Column | None = None
    about: Literal["structure", "relaxation"] = "structure"
    measure: Callable[[RelaxedBatch], Tensor] | None = None


METRICS: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Add a metric to all scores and tables from now on; returns it.

    The order of registration is that of the results file.

    Raises:
        ValueError: there is one of that name, or it measures what a field of ``Record`` is called.
    """
    if metric.name in METRICS:
        raise ValueError(f"there is a metric {metric.name} already")
    if metric.measure and metric.name in {f.name for f in fields(Record)}:
        raise ValueError(f"metric {metric.name}: every record has a field of that name")
    METRICS[metric.name] = metric
    return metric


def add_metrics(paths: Iterable[str]) -> None:
    """Register the metrics that a config names; one that is registered already stays.

    Args:
        paths: of each, ``package.module.NAME``.

    Raises:
        ValueError: nothing is at a path, it is no ``Metric``, or as ``register_metric``.
    """
    for path in paths:
        metric = at_path(path, "metric")
        if not isinstance(metric, Metric):
            raise ValueError(f"metric {path!r}: expected a Metric, found {type(metric).__name__}")
        if METRICS.get(metric.name) is not metric:
            register_metric(metric)


def measured_metrics() -> dict[str, Callable[[RelaxedBatch], Tensor]]:
    """The ``measure`` of each metric that has one, by name."""
    return {m.name: m.measure for m in METRICS.values() if m.measure is not None}


def table_columns() -> list[tuple[str, Column]]:
    """Name and column of what the table shows, in its order."""
    shown = [(m, m.column) for m in METRICS.values() if m.column is not None]
    shown.sort(key=lambda pair: pair[0].about == "relaxation")  # stable: else as registered
    return [(metric.name, column) for metric, column in shown]
