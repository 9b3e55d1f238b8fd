"""Waits and kernels of the method per force evaluation: ``python -m benchmarks.waits``.

Counted on the pretended device of the tests, on a field of two kernels; the tests hold the budgets.
"""

from __future__ import annotations

import torch

from fairchem_gdeq.testing.device.counting import counted
from fairchem_gdeq.testing.device.fake import using
from fairchem_gdeq.testing.loops import LOOPS, problem


def main() -> None:
    """Print a row for each loop."""
    torch.set_default_dtype(torch.float64)
    print("| loop | evaluations | waits per evaluation | kernels per evaluation |")
    print("|---|---:|---:|---:|")
    with using() as device:
        for name, run in LOOPS.items():
            operator, start = problem(device)
            with counted() as counts:
                run(operator, start)
            calls = len(operator.field.calls)
            waits, kernels = (sum(c.values()) / calls for c in (counts.waits, counts.kernels))
            print(f"| {name} | {calls} | {waits:.2f} | {kernels:.0f} |")


if __name__ == "__main__":
    main()
