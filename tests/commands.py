"""``fairchem ...`` in a process of its own, without the five seconds that importing fairchem takes each.

A server (``multiprocessing``'s) imports fairchem once, and nothing of ours; every command is a fork of
it, with its own arguments, environment, folder and output, and ends by its own exit status. What is
about processes (signals, a fresh interpreter) is tested with real ones, by ``subprocess``.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.preloaded"])


class Done(NamedTuple):
    """How a command ended: its exit status, what it printed, and what it said on stderr."""

    returncode: int
    stdout: str
    stderr: str


def fairchem(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = ".",
    leads: bool = False,
) -> Done:
    """Run ``fairchem ARGUMENTS`` to its end, with ``env`` added to this process's environment.

    ``leads`` as for ``started``.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = started(*arguments, env=env, cwd=cwd, outputs=outputs, leads=leads)
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, *(path.read_text() for path in outputs))


def started(
    *arguments: object,
    outputs: Sequence[Path],
    env: Mapping[str, str] | None = None,
    cwd: Path | str = ".",
    leads: bool = False,
) -> BaseProcess:
    """The same, which runs now; what it prints and says is added to two files, which may be one.

    One that ``leads`` has a group of processes of its own, in which its ranks are forks of it: they
    need not import anything either.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140", **(env or {})}
    texts = [str(argument) for argument in arguments]
    process = _SERVER.Process(
        target=_become, args=(texts, environment, Path(cwd).resolve(), outputs, leads)
    )
    process.start()
    return process


def ranks(count: int, *arguments: object) -> Done:
    """``fairchem ARGUMENTS`` in ``count`` ranks."""
    return fairchem(*arguments, f"job.scheduler.ranks_per_node={count}", leads=True)


def _become(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    outputs: Sequence[Path],
    leads: bool,
) -> None:
    """In the fork: be that command."""
    if leads:
        os.setpgid(0, 0)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["fairchem", *arguments]
    import torch
    from fairchem.core._cli import main

    torch.set_num_threads(1)  # OMP_NUM_THREADS was read when the server started
    if leads:
        elastic = import_module("torch.distributed.launcher.api")
        elastic.LaunchConfig = partial(elastic.LaunchConfig, start_method="fork")
    try:
        sys.exit(main())
    except Exception:  # multiprocessing would print it, and not ask the hook that a command ends by
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # the end of a process of multiprocessing leaves them out
