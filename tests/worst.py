"""A metric as somebody else would write it, for either fairchem line."""

from fairchem_gdeq.evaluation.metric import Column, Metric

WORST = Metric(
    "delta_q_worst",
    "amu^0.5 A",
    lambda columns, basin: float(columns["delta_q"].max()),
    Column("worst\nDelta Q", "{:.2f}"),
)
