"""What is extrapolated in the table of sizes."""

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
