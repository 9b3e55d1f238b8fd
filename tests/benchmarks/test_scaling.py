"""What is extrapolated in the table of sizes."""

import subprocess
import sys

import pytest

from benchmarks.scaling import extrapolate


def test_a_power_law_is_found_and_extrapolated():
    found = [
        {"atoms": n, "steps": k, "extra_mb": 0.25 * n * k**1.1}
        for n in (64, 216, 512)
        for k in (5, 10)
    ]
    said = extrapolate(found, 1000, 100)
    assert "0.250 MB atoms^1.00 steps^1.10, within 0.0% of each of 6 measured" in said
    assert said.endswith("40 GB for 1000 atoms over 100 steps")


@pytest.mark.slow
def test_sizes_are_measured_in_processes_of_their_own(tmp_path):
    """Two sizes, as the command is typed."""
    options = ["--cells", "1", "2", "--batches", "--stored", "--repeats", "1"]
    command = [sys.executable, "-m", "benchmarks.scaling", *options, "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {row[0] for row in rows} >= {"| 8", "| 64"}
    assert "extra memory ~ atoms^" in done.stdout
