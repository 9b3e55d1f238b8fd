"""A small run through the real entry point, which the tests of this folder share."""

import json
import re
import sys
from functools import partial
from pathlib import Path

from tests import commands
from tests.device.checks import assert_same

ROOT = Path(__file__).parents[2]
FAIRCHEM = str(Path(sys.executable).with_name("fairchem"))
CHEAP = [
    "epochs=2",
    "max_atoms=16",
    "eval_max_atoms=64",
    "job.scheduler.ranks_per_node=1",
    "horizon=3",
    "relaxer.horizon=3",
    "relaxer.max_steps=25",
    "relaxer.fmax=0.05",
    "runner.train_eval_unit.signal.max_steps=25",
    "runner.train_eval_unit.signal.adjoint.max_vjps=10",
    "runner.train_eval_unit.signal.adjoint.tol=0.5",
    "warm_start=true",
    "keep=last",
    "forces.max_atoms=16",
    "forces.updates=1",
    "forces.alone=0.0",
]


def command(inputs, run_dir, *extra, config="gdeq", base="esen"):
    return [
        FAIRCHEM,
        "-c",
        str(ROOT / "configs" / "si" / f"{config}.yml"),
        f"data={inputs}",
        f"base={inputs / f'{base}.pt'}",
        "train_structures=1.0",
        "test_structures=1.0",
        "paths.train=${data}/train",
        "paths.val=${data}/val",
        "paths.test=${data}/${test}",
        f"job.run_dir={run_dir}",
        *CHEAP,
        *extra,
    ]


def fairchem(*args, **kwargs):
    return commands.fairchem(*command(*args, **kwargs)[1:])


def shown_in(results):
    """Rows of the structures on a page, each with all places at which a model was."""
    text = (results / "report.html").read_text()
    (found,) = re.findall(r'json" id="structures">(.*?)</script>', text, re.DOTALL)
    structures = json.loads(found)
    for each in structures:
        assert list(each["places"]) == ["unrelaxed X_0", "base", "tuned", "target"]
    return sorted(each["row"] for each in structures)


def ranks_of(count, *args):
    """The same in ``count`` ranks."""
    return commands.ranks(count, *command(*args)[1:])


def comparable(folder, split="test"):
    """Everything of a result that does not depend on the clock or the machine's memory."""
    stored = json.loads((folder / "results" / f"{split}.json").read_text())
    for step in stored["history"]["steps"]:
        for key in ("train/seconds", "train/peak_memory_mb"):
            del step[key]
    # A square of spread over mean, where both are nearly nothing: it magnifies a last digit.
    epochs = [*stored["history"]["epochs"], *filter(None, [stored["best_epoch"]])]
    for compared in filter(None, [stored["comparison"], *(e["against_base"] for e in epochs)]):
        del compared["needed"]
    return stored


# The last digit of a sum in single precision depends on where its terms lie in memory.
assert_equal_up_to_rounding = partial(assert_same, rtol=1e-5, atol=1e-6)
