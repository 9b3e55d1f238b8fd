"""A reference for the tests: Lennard-Jones that notes its calls, and fails where it is told to."""

import os
import signal
from pathlib import Path

import numpy as np
from ase.calculators.calculator import SCFError, all_changes
from ase.calculators.lj import LennardJones

PARAMETERS = {"sigma": 2.0, "epsilon": 0.3, "rc": 5.0}


class Noted(LennardJones):
    """Writes a line for each call to ``log``, where one is given.

    It fails at structures of ``fails`` atoms, has NaN at those of ``spoils``, and kills its process at
    the call of the log whose number is in the file ``kill_at``.
    """

    def __init__(self, log=None, fails=0, spoils=0, kill_at=None):
        super().__init__(**PARAMETERS)
        self.log, self.fails, self.spoils, self.kill_at = log, fails, spoils, kill_at

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{len(atoms)} {self.directory}\n")
            if self.kill_at and calls(self.log) == int(Path(self.kill_at).read_text()):
                os.kill(os.getpid(), signal.SIGKILL)
        if len(atoms) == self.fails:
            raise SCFError("no self-consistency")
        super().calculate(atoms, properties, system_changes)
        if len(atoms) == self.spoils:
            self.results["forces"] = self.results["forces"] * np.nan


def calls(log):
    return len(Path(log).read_text().splitlines())
