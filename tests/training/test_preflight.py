"""What a run would fail at is said before it begins."""

import os

import pytest
from omegaconf import OmegaConf

from fairchem_gdeq.training.preflight import unwritable

PARTS = ("mine", "mine/logs", "mine/checkpoints", "mine/results")


@pytest.fixture
def job(tmp_path):
    return OmegaConf.create({"run_dir": str(tmp_path / "runs"), "timestamp_id": "mine"})


@pytest.mark.parametrize("part", PARTS)
def test_a_file_in_the_place_of_a_folder_of_the_run(tmp_path, job, part):
    place = tmp_path / "runs" / part
    place.parent.mkdir(parents=True)
    assert unwritable(job) is None
    place.touch()
    assert unwritable(job) == (
        f"job.timestamp_id=mine: expected a folder that can be written, found that {place} is a "
        "file. Choose another with job.timestamp_id=NAME"
    )


@pytest.mark.parametrize(("part", "key"), [(".", "run_dir"), *((p, "timestamp_id") for p in PARTS)])
def test_a_folder_of_somebody_else(tmp_path, monkeypatch, job, part, key):
    """Nothing is denied to root, as which tests may run."""
    place = tmp_path / "runs" / part
    place.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != place)
    said = unwritable(job)
    assert said and said.startswith(f"job.{key}=") and f"{place} cannot be. Choose another" in said


def test_a_run_without_a_name_gets_one_of_fairchem_s(tmp_path):
    (tmp_path / "logs").touch()
    assert unwritable(OmegaConf.create({"run_dir": str(tmp_path)})) is None
