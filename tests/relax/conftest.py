"""What the tests of the method share."""

import pytest


@pytest.fixture(autouse=True)
def atoms_anywhere(monkeypatch):
    """The atoms of these fields are points of some space, not of one where atoms keep apart."""
    monkeypatch.setattr("fairchem_gdeq.relax.causes.SHORTEST", 0.0)
