"""A fairchem 2 that does not look up what we replace is noticed; so is another version."""

import types

import pytest
import torch
from fairchem.core.models.allscaip.utils import allscaip_radius_graph
from fairchem.core.models.escaip.utils import data_preprocess, radius_graph
from fairchem.core.models.uma import escn_md

from fairchem_gdeq import versions
from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.frozen.patching import NotCalled, called
from fairchem_gdeq.testing.fairchem2 import backbones, small

ESEN = escn_md.eSCNMDBackbone


def looking_elsewhere(function):
    """The same function with globals of its own, which nobody can reach."""
    function = getattr(function, "__wrapped__", function)
    own = dict(function.__globals__)
    return types.FunctionType(
        function.__code__, own, closure=function.__closure__, argdefs=function.__defaults__
    )


def own_graph(backbone, data):
    """``_generate_graph`` as if the model did not ask ``otf_graph``."""
    vars(backbone)["otf_graph"] = True
    return GENERATE(backbone, data)


GENERATE = ESEN._generate_graph
CASES = {
    "wigner": (
        "eSEN direct (OC25)",
        (ESEN, "_get_rotmat_and_wigner", looking_elsewhere(ESEN._get_rotmat_and_wigner)),
        r"escn_md\.axis_angle_wigner_hybrid 0 times.*at least 1.*not one map",
    ),
    "otf_graph": (
        "eSEN direct (OC25)",
        (ESEN, "_generate_graph", own_graph),
        r"eSCNMDBackbone\.otf_graph 0 times.*instead of the frozen one",
    ),
    "uma": (
        "UMA, mixture of experts",
        (ESEN, "_get_rotmat_and_wigner", looking_elsewhere(ESEN._get_rotmat_and_wigner)),
        r"axis_angle_wigner_hybrid",
    ),
    "escaip": (
        "EScAIP, soft kNN",
        (
            radius_graph,
            "batched_radius_graph",
            looking_elsewhere(radius_graph.batched_radius_graph),
        ),
        r"escaip.*build_radius_graph 0 times.*at least 2.*neighbours of its own",
    ),
    "angles": (
        "EScAIP, angle bias",
        (
            data_preprocess,
            "get_attn_mask",
            looking_elsewhere(data_preprocess.get_attn_mask),
        ),
        r"legendre_polynomials 0 times.*no derivative",
    ),
    "allscaip": (
        "AllScAIP, soft kNN",
        (
            allscaip_radius_graph,
            "batched_radius_graph",
            looking_elsewhere(allscaip_radius_graph.batched_radius_graph),
        ),
        r"allscaip.*build_radius_graph 0 times",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_replacement_that_is_not_called_is_an_error(case, monkeypatch):
    name, patch, message = CASES[case]
    data = small.batch(small.silicon(2), double=False)
    field = HydraForceField.frozen(backbones.model(name, False), backbones.tasks(name), data)
    before = field(data.pos)
    backbone = field.model.backbone
    switch = vars(backbone).get("otf_graph")
    with monkeypatch.context() as patched:
        patched.setattr(*patch)
        with pytest.raises(NotCalled, match=message) as raised:
            field(data.pos)
        assert f"fairchem-core {versions.installed_version()}" in str(raised.value)
    assert vars(backbone).get("otf_graph") is switch  # everything is back in its place
    assert torch.equal(field(data.pos), before)


def test_a_recorder_that_is_not_called_is_an_error(monkeypatch):
    _, patch, message = CASES["escaip"]
    data = small.batch(small.silicon(2), double=False)
    field = HydraForceField.unfrozen(
        backbones.model("EScAIP, soft kNN", False), backbones.tasks("EScAIP, soft kNN"), data
    )
    monkeypatch.setattr(*patch)
    with pytest.raises(NotCalled, match=message):
        field.freeze(data.pos)


def test_a_batch_without_edges_is_no_error():
    """fairchem adds an edge of its own there, and still asks for its frame."""
    from ase import Atoms

    far = [Atoms("Si2", positions=[[1, 1, 1], [1, 9, 1]], cell=[16] * 3, pbc=True)]
    data = small.batch(far, double=False)
    name = "eSEN direct (OC25)"
    field = HydraForceField.frozen(backbones.model(name, False), backbones.tasks(name), data)
    assert field.batch.edge_index.shape == (2, 0)
    assert field(data.pos).isfinite().all()


def test_another_error_is_not_hidden():
    with pytest.raises(KeyError), called(len, "len", "nothing"):
        raise KeyError("first")


@pytest.mark.parametrize("found", ["1.10.0", "2.23.0", "2.25.0", "2.2.4", "3.0.0", None])
def test_other_versions_are_refused(monkeypatch, found):
    monkeypatch.setattr(versions, "installed_version", lambda: found)
    with pytest.raises(ImportError, match=r"fairchem-core 2\.24\.x, found .*Install fairchem-core"):
        versions.require_version(2)
    monkeypatch.setattr(versions, "installed_version", lambda: "2.24.3")
    versions.require_version(2)


def test_the_package_itself_refuses(monkeypatch):
    import importlib

    import fairchem_gdeq.fairchem2 as package

    monkeypatch.setattr(versions, "installed_version", lambda: "2.30.0")
    with pytest.raises(ImportError, match=r"found 2\.30\.0"):
        importlib.reload(package)
