"""Sentences about structures of which no minimum was found."""

from dataclasses import replace

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.failures import CAUSES, of_scores, of_steps
from fairchem_gdeq.evaluation.metrics import summarise
from tests.records import RECORD


def test_of_a_row():
    causes = ["none"] * 5 + ["out_of_steps"] * 2 + ["not_finite"]
    records = [replace(RECORD, row=k, cause=cause) for k, cause in enumerate(causes)]
    said = of_scores("tuned", summarise(records, Basin()))
    assert said == "tuned: no minimum for 3 of 8 structures (2 out of steps, 1 not finite)"
    assert not of_scores("tuned", summarise(records[:5], Basin()))


def test_of_a_training_run():
    nothing = {f"train/{cause.key}": 0.0 for cause in CAUSES}
    nothing |= {"train/adjoint_unbounded": 0.0, "train/adjoint_unsolved": 0.0}
    steps = [
        nothing | {"train/structures": 8.0, "train/oscillates": 0.125},
        {"train/forces_loss": 0.1},  # on forces alone
        nothing
        | {"train/structures": 7.0, "train/adjoint_unbounded": 2 / 7, "train/exploded": 1 / 7},
    ]
    assert of_steps(steps) == (
        "training: 4 of 15 visits gave no equilibrium gradient "
        "(1 oscillates, 1 exploded, 2 singular adjoint)"
    )
    assert not of_steps(steps[1:2]) and not of_steps([])
