"""When a run in which structures diverge is ended."""

import pytest

from fairchem_gdeq.evaluation.failures import CAUSES
from fairchem_gdeq.relax import SIGNALS, make_signal
from fairchem_gdeq.training.failing import LOOKED_AT, Diverging, TooManyDiverged, is_guided


def log_of(structures, **shares):
    """As ``steplog.describe`` makes it."""
    causes = {f"train/{cause.key}": shares.get(cause.key, 0.0) for cause in CAUSES}
    return {"train/structures": float(structures), **causes}


def steps_until_it_ends(most, shares, structures=10):
    counted = Diverging(most)
    for step, share in enumerate(shares, start=1):
        try:
            counted.add(log_of(structures, exploded=share))
        except TooManyDiverged as error:
            return step, str(error)
    return None, ""


def test_nothing_is_said_of_a_few_structures():
    step, said = steps_until_it_ends(0.5, [1.0] * 50)
    assert step == LOOKED_AT // 10
    assert "100 of the latest 100 structures diverged" in said and "Lower lr or alpha" in said


def test_a_share_that_is_allowed_goes_on():
    assert steps_until_it_ends(0.5, [0.5] * 200) == (None, "")
    assert steps_until_it_ends(1.0, [1.0] * 200) == (None, "")


def test_the_latest_count_however_well_it_began():
    step, _ = steps_until_it_ends(0.5, [0.0] * 1000 + [1.0] * 50)
    assert step == 1000 + 6  # of the latest ten steps


@pytest.mark.parametrize("structures", [1, 7, 1000])
def test_batches_of_any_size(structures):
    step, _ = steps_until_it_ends(0.2, [0.3] * 500, structures)
    assert step == -(-LOOKED_AT // structures)


def test_most_without_an_equilibrium_gradient_are_warned_of_once(caplog):
    """And the run goes on: guidance does not need one."""
    counted = Diverging(0.5)
    for _ in range(30):
        counted.add(log_of(10, out_of_steps=0.3, oscillates=0.3))
    (said,) = caplog.messages
    assert "60 of the latest 100 structures gave no equilibrium gradient" in said
    assert "(30 out of steps, 30 oscillates)" in said and "max_steps" in said


def test_the_causes_are_counted():
    counted = Diverging(0.5)
    counted.add(log_of(60, exploded=0.5, not_finite=0.25, out_of_steps=0.25))
    with pytest.raises(TooManyDiverged) as error:
        counted.add(log_of(40, collapsed=1.0))
    said = "85 of the latest 100 structures diverged (40 collapsed, 30 exploded, 15 not finite)"
    assert said in str(error.value)


def test_without_guidance_a_structure_without_an_equilibrium_gradient_teaches_nothing():
    """A week of them would leave the base as it was."""
    counted = Diverging(0.5, guided=False)
    counted.add(log_of(60, out_of_steps=0.5))
    with pytest.raises(TooManyDiverged) as error:
        counted.add(log_of(40, oscillates=0.5, exploded=0.25) | {"train/adjoint_unsolved": 0.25})
    said = "70 of the latest 100 structures taught nothing (30 out of steps, 20 oscillates, 10 exploded,"
    assert said in str(error.value)


def test_which_signals_are_guided():
    unguided = [name for name in SIGNALS if not is_guided(make_signal(name))]
    assert unguided == ["implicit"]


def test_the_latest_are_known_to_a_run_that_goes_on():
    """Else one that is interrupted often would never be ended."""
    counted = Diverging(0.5)
    counted.add(log_of(60, exploded=1.0) | {"train/loss": 3.0})
    again = Diverging(0.5)
    again.load(counted.state())
    with pytest.raises(TooManyDiverged, match="60 of the latest 100"):
        again.add(log_of(40))
