"""Both fairchem lines, each in an environment of its own: ``nox -s fairchem2``, ``nox -s fairchem1``.

The tests of fairchem-core 1.10 run on the same PyTorch as those of 2.24. Its own pin (torch~=2.4.0) is
for users and their GPUs (docs/fairchem1.md); so it is installed without its dependencies, which are
listed here.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["fairchem2", "fairchem1"]

TORCH = "2.13.0"
# No wheels of these exist for this PyTorch; some minutes each to compile.
COMPILED = ("torch-scatter==2.1.2", "torch-sparse==0.6.18")
FAIRCHEM1 = (
    *("ase", "e3nn>=0.5", "huggingface-hub", "hydra-core", "lmdb", "numba", "numpy>=1.26,<2"),
    *("orjson", "pydantic>=2.10", "pymatgen", "pyyaml", "requests", "scipy<1.15", "submitit"),
    *("tensorboard", "torch-geometric", "torchtnt", "tqdm", "wandb"),
)
OURS = (
    "ase-db-backends",
    "jinja2",
    "mendeleev>=1.0",
    "matplotlib",
    "plotly>=6",
    "rich",
    "omegaconf",
)
PARALLEL = ("-n", "2", "--dist", "loadfile")
TESTS = ("pytest", "pytest-xdist", "hypothesis")
SHARED = (
    "relax",
    "batching",
    "evaluation",
    "training",
    "frozen",
)  # what needs neither line of fairchem


def wheels() -> Path:
    """Where compiled wheels are kept, also for another clone; ``GDEQ_WHEELS`` sets another place."""
    cache = Path(os.environ.get("GDEQ_WHEELS", Path.home() / ".cache" / "fairchem-gdeq" / "wheels"))
    return cache / f"torch{TORCH}-cp{sys.version_info.major}{sys.version_info.minor}"


def wanting() -> list[str]:
    """What a build of a PyTorch extension needs and this machine lacks."""
    found = []
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        found.append(f"a C++ compiler ({compiler}; Debian: apt-get install g++)")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        found.append("Python's headers (Python.h; Debian: apt-get install python3-dev)")
    return found


def compile_once(session: nox.Session) -> None:
    """Install torch-scatter and torch-sparse from kept wheels, compiling those that are not there."""
    folder = wheels()
    folder.mkdir(parents=True, exist_ok=True)
    for package in COMPILED:
        name, _, version = package.partition("==")
        if not list(folder.glob(f"{name.replace('-', '_')}-{version}*.whl")):
            if missing := wanting():
                session.error(f"{package} has to be compiled, and needs {' and '.join(missing)}")
            session.log(f"compiling {package}: some minutes, once; the wheel is kept in {folder}")
            options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
            # Debug symbols, which Python's own flags may ask for, take near half of the time.
            flags = {"CFLAGS": f"{os.environ.get('CFLAGS', '')} -g0".strip()}
            try:
                session.run_install("python", "-m", "pip", "wheel", *options, package, env=flags)
            except CommandFailed:
                session.error(f"{package} did not compile: the compiler's message is above")
    session.install("--no-deps", "--no-index", "--find-links", str(folder), *COMPILED)


@nox.session
def fairchem2(session: nox.Session) -> None:
    """fairchem-core 2.24: all tests but those of fairchem 1."""
    session.install(f"torch=={TORCH}")
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", "-q", *PARALLEL, *session.posargs)


@nox.session
def fairchem1(session: nox.Session) -> None:
    """fairchem-core 1.10: its tests, and those of the method and of what both lines share."""
    session.install(f"torch=={TORCH}", "setuptools<81", "wheel", "ninja", "numpy<2")
    compile_once(session)
    session.install(*FAIRCHEM1, *OURS, *TESTS)
    session.install("--no-deps", "fairchem-core==1.10.0", "-e", ".")
    tests = ("tests/fairchem1", *(f"tests/{name}" for name in SHARED))
    session.run("python", "-m", "pytest", "-q", *PARALLEL, *(session.posargs or tests))
