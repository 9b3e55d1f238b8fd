"""What a job of Slurm starts with: fairchem's program, and what it lacks at its start.

fairchem submits a program as a pickle, which names its class. Ours is submitted in its place, so that it
is there from the job's first line on: errors of ours end the job's log in a sentence, and a signal that
comes before there is a runner puts the job back into the queue.
"""

from __future__ import annotations

import logging
from typing import Any

from fairchem.core.launchers import slurm_launch
from fairchem.core.launchers.api import RunType
from fairchem.core.launchers.slurm_launch import SlurmSPMDProgram
from omegaconf import DictConfig
from submitit.helpers import DelayedSubmission

from fairchem_gdeq.training.one_line import end_in_one_line


class Program(SlurmSPMDProgram):
    """fairchem's program of a job."""

    def __call__(self, dict_config: DictConfig, run_type: RunType = RunType.RUN) -> None:
        """Run the job, of which errors of ours are said in a sentence."""
        end_in_one_line()
        super().__call__(dict_config, run_type)

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        """What submitit puts back into the queue; it calls this on a signal, with the job's arguments.

        fairchem asks the runner for its newest checkpoint. Before there is one, nothing is new: the job
        begins again as it was submitted, and so from the checkpoint that it was to begin from.
        """
        if self.runner is None and self.reducer is None:
            logging.info("interrupted before it began: the job is put back as it was submitted")
            return DelayedSubmission(Program(), *args, **kwargs)
        again = super().checkpoint(*args, **kwargs)
        again.function = Program()
        return again


def submit_ours() -> None:
    """From now on, this process submits ``Program``."""
    slurm_launch.SlurmSPMDProgram = Program
