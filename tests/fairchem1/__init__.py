"""Tests of the fairchem-core 1.10 line: skipped where another fairchem-core is installed."""

from importlib.metadata import version

import pytest

if not version("fairchem-core").startswith("1.10."):
    pytest.skip("needs fairchem-core 1.10", allow_module_level=True)
