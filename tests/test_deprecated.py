"""What configs of version 0.1 name goes on working for one more release, with a warning."""

import pytest
from hydra.utils import instantiate

from fairchem_gdeq.relax import GMRES, LBFGS, Relaxer, make_signal
from fairchem_gdeq.relax.deprecated import current_settings

OLD = {"adjoint": "gmres", "adjoint_tol": 0.05, "max_vjps": 60, "adjoint_damping": 0.03}


def test_settings_of_a_signal():
    config = {"_target_": "fairchem_gdeq.relax.Method", "horizon": 7, **OLD}
    with pytest.warns(FutureWarning):
        old = instantiate(config | {"solver": "lbfgs", "solver_options": {"softest": 10.0}})
    new = {"horizon": 7, "solver": LBFGS(softest=10.0), "adjoint": GMRES(0.05, 60, 0.03)}
    new["fmax"] = 0.01  # that of version 0.1
    assert make_signal("gdeq", **current_settings(old)) == make_signal("gdeq", **new)


def test_a_setting_that_is_not_given_is_that_of_version_0_1():
    with pytest.warns(FutureWarning):
        old = instantiate({"_target_": "fairchem_gdeq.relax.Method", "horizon": 7})
    expected = make_signal("gdeq", horizon=7, fmax=0.01, adjoint=GMRES(0.01, 60, 0.0))
    assert make_signal("gdeq", **old) == expected


def test_an_old_key_beside_a_part_is_an_option_of_it():
    """As where a config of version 0.1 builds on a shared one of today."""
    shared = {
        "adjoint": {"name": "gmres", "tol": 0.05, "damping": 0.03},
        "solver": {"name": "fire"},
    }
    with pytest.warns(FutureWarning):
        new = current_settings(shared | {"adjoint_tol": 0.1, "solver_options": {"patience": 3}})
    assert new == {
        "adjoint": {"name": "gmres", "tol": 0.1, "damping": 0.03},
        "solver": {"name": "fire", "patience": 3},
    }
    with pytest.warns(FutureWarning):
        assert current_settings({"adjoint": "identity", "adjoint_tol": 0.1}) == {
            "adjoint": {"name": "identity"}
        }


def test_a_relaxer():
    pytest.importorskip("fairchem.core.units.mlip_unit", reason="fairchem 2's path")
    options = {"solver": "lbfgs", "solver_options": {"softest": 10.0}, "max_steps": 60}
    with pytest.warns(FutureWarning):
        old = instantiate({"_target_": "fairchem_gdeq.fairchem2.task.Relaxer", **options})
    assert old == Relaxer(solver=LBFGS(softest=10.0), max_steps=60)


def test_a_basin():
    from fairchem_gdeq.evaluation.basin import Basin

    assert instantiate({"_target_": "fairchem_gdeq.metrics.Basin", "delta_q": 2.5}) == Basin(2.5)


def test_settings_without_old_keys_are_as_they_are():
    assert current_settings({"horizon": 3, "solver": "fire"}) == {"horizon": 3, "solver": "fire"}
