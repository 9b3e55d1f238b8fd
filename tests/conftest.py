"""What every test gets: a floating-point default of its own, and the device that it asks for.

A test that takes ``device`` runs on ``fake`` (``fairchem_gdeq.testing.device.fake``), and on ``cuda``
where there is one. ``pytest --device NAME``, which may be repeated, chooses: ``cpu``, ``fake`` or
``cuda``.
"""

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # a machine that does other things is no failure
settings.load_profile("busy")
torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other

DEVICES = ("cpu", "fake", "cuda")


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Double for the tests of the method (DESIGN section 3), fairchem's single elsewhere."""
    method = request.path.parent.name in ("relax", "batching")
    torch.set_default_dtype(torch.float64 if method else torch.float32)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device``."""
    parser.addoption(
        "--device",
        action="append",
        choices=DEVICES,
        help="where tests of a device run; may be repeated (default: fake, and cuda if there is one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that is not there.

    Raises:
        UsageError: ``--device cuda`` on a machine without one.
    """
    if "cuda" in (config.getoption("device") or ()) and not torch.cuda.is_available():
        raise pytest.UsageError(
            "--device cuda: PyTorch finds no CUDA device here (torch.cuda.is_available() is False). "
            "Choose --device fake or --device cpu."
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``device`` becomes one for each device."""
    if "device" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("device")
        there = [name for name in DEVICES[1:] if name != "cuda" or torch.cuda.is_available()]
        names = list(dict.fromkeys(chosen or there))
        metafunc.parametrize("device", names, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders whose files take minutes, so that processes end at about one time."""
    items.sort(key=lambda item: item.path.parent.name not in ("slow", "slurm", "fairchem2"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load the pretended device, if any test asks for it, before autograd starts its threads.

    What has been imported by now is no garbage: to look through it again and again takes seconds.
    """
    asked = (getattr(item, "callspec", None) for item in session.items)
    if any(spec is not None and spec.params.get("device") == "fake" for spec in asked):
        import fairchem_gdeq.testing.device.fake  # noqa: F401
    gc.freeze()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the test computes, to compare with the CPU."""
    if request.param != "fake":
        yield torch.device(request.param)
        return
    from fairchem_gdeq.testing.device import fake

    with fake.using() as pretended:
        yield pretended
