"""Frames that cannot be meant: units, signs, elements, overlaps, and settings without forces."""

import logging

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from fairchem_gdeq.data.overlap import Named
from fairchem_gdeq.training import frame_checks
from fairchem_gdeq.training.frame_checks import (
    UNITS,
    Agreement,
    Elements,
    agreement,
    given_settings,
    looked_at,
    require_no_overlap,
    require_unit,
)

RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(200, 3))
BASE = 0.8 * TRUE + 0.2 * RNG.normal(size=TRUE.shape)  # as a base that is soft and not very good


@pytest.mark.parametrize(("unit", "size"), UNITS.items())
@pytest.mark.parametrize("sign", [1, -1])
def test_another_unit_is_told_by_its_name(unit, size, sign):
    with pytest.raises(ValueError, match="frames some: their forces are") as refused:
        require_unit(agreement(BASE, sign * TRUE / size), "some")
    said = str(refused.value)
    assert f"in {unit}" in said and f"multiply them by {size:.5g}" in said
    assert ("gradients of the energy" in said and "change their sign" in said) == (sign < 0)


def test_gradients_are_not_forces():
    with pytest.raises(ValueError, match="gradients of the energy") as refused:
        require_unit(agreement(BASE, -TRUE), "some")
    assert "multiply" not in str(refused.value)


def test_a_weak_likeness_of_the_other_sign_is_said(caplog):
    """Too weak to refuse what a poor base disagrees with, and too strange to keep silent about."""
    require_unit(Agreement(-0.4, -1.0, 600), "some")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "are -1 times" in record.message
    require_unit(Agreement(0.4, 1.0, 600), "some")
    assert len(caplog.records) == 1


def test_a_ratio_of_no_unit_is_refused_all_the_same():
    with pytest.raises(ValueError, match=r"are 9\.\d+ times .* as in no common unit"):
        require_unit(agreement(BASE, 8 * TRUE), "some")


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_a_soft_base_is_no_other_unit(factor, caplog):
    require_unit(agreement(BASE, factor * TRUE), "some")
    assert not caplog.records


def test_labels_that_have_nothing_to_do_with_the_base_are_said(caplog):
    """And not refused: the base may be that poor."""
    noise = np.random.default_rng(1).normal(size=TRUE.shape)
    require_unit(agreement(noise, TRUE), "some")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "over 600 components" in record.message
    require_unit(agreement(noise[:5], 100 * TRUE[:5]), "few")  # 15 components say nothing
    require_unit(Agreement(0.0, 0.0, 0), "none")
    assert len(caplog.records) == 1


@given(st.floats(0.01, 100), st.integers(0, 40))
def test_outliers_do_not_decide_the_ratio(factor, wild):
    labels = factor * BASE
    labels[:wild] *= -1e4
    found = agreement(BASE, labels)
    assert found.ratio == pytest.approx(factor)


def test_forces_that_vanish_or_are_not_finite_are_passed_over():
    base, labels = BASE.copy(), 2 * BASE
    base[:3], labels[3:6] = 0.0, np.nan
    found = agreement(base, labels)
    assert found == Agreement(pytest.approx(1.0), pytest.approx(2.0), 3 * 194)
    assert agreement(np.zeros((4, 3)), TRUE[:4]).components == 0
    assert agreement(np.ones((4, 3)), TRUE[:4]).ratio == 0.0  # of one value: nothing to correlate


def named(symbols):
    return Named("frame 3", Atoms(symbols))


def test_an_element_beyond_the_model_is_named():
    elements = Elements("some", limit=90)
    elements.add(named("SiAc"))
    with pytest.raises(ValueError, match=r"frame 3 has Th \(atomic number 90\), .* to 89 \(Ac\)"):
        elements.add(named("SiTh"))
    Elements("some").add(named("Og"))


@pytest.mark.parametrize(
    ("frames", "trained", "said"),
    [
        ("SiGe", [14, 32], None),
        ("SiGeC", [14, 32], None),
        ("SiC", [14, 32, 50], "none has Ge, Sn, which training structures have"),
        ("CuO", [14, 32], "they are of O, Cu, and the training structures of Si, Ge: no element"),
    ],
)
def test_elements_of_frames_and_of_training_structures(frames, trained, said, caplog):
    elements = Elements("some")
    elements.add(named(frames))
    elements.compare(trained)
    assert (said in caplog.text) if said else not caplog.records


def test_frames_that_are_held_out_are_refused_and_close_ones_said(caplog):
    caplog.set_level(logging.INFO)
    atoms = Atoms("Si4", RNG.uniform(0, 6, (4, 3)))
    near, far = atoms.copy(), atoms.copy()
    near.positions[0] += 0.004
    far.positions[0] += 0.04
    held = [Named("X_gt of one in split test", atoms)]
    require_no_overlap([Named("far", far)], held, "some")
    assert not caplog.records
    require_no_overlap([Named("far", far), Named("near", near)], held, "some")
    assert "1 are within 0.01 Angstrom of 1 held-out structures, such as near of" in caplog.text
    moved = atoms.copy()
    moved.translate(3)
    with pytest.raises(
        ValueError, match=r"frames some: 1 of them are .* a is X_gt of one in split"
    ):
        require_no_overlap([Named("a", moved), Named("far", far)], held, "some")


NOTHING = {"lambda_forces": None, "limit": None, "updates": None, "alone": None}


@pytest.mark.parametrize("key", NOTHING)
def test_a_weight_without_data_is_refused(key):
    for value in (0, 0.5):
        with pytest.raises(ValueError, match=f"forces.{key}={value}, and there are no forces"):
            given_settings(None, NOTHING | {key: value})
        assert given_settings("none", NOTHING | {key: value}) is None
        assert given_settings("frames", NOTHING | {key: value}) == {key: value}


def test_no_data_and_no_weight_is_no_force_training():
    assert given_settings(None, NOTHING) is None and given_settings("none", NOTHING) is None
    assert given_settings("base", NOTHING) == {}


def test_all_rows_of_a_small_set_are_looked_at_and_some_of_a_large_one(monkeypatch):
    assert looked_at(0) == [] and looked_at(1) == [0] and looked_at(7) == list(range(7))
    monkeypatch.setattr(frame_checks, "LOOKED_AT", 5)
    assert looked_at(5) == list(range(5)) and looked_at(101) == [0, 25, 50, 75, 100]
