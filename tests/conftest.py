"""One floating-point default per test, whatever ran before it in the same process."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Double for the tests of the method (DESIGN section 3), fairchem's single elsewhere."""
    method = request.path.parent.name == "relax"
    torch.set_default_dtype(torch.float64 if method else torch.float32)
    yield
    torch.set_default_dtype(torch.float32)
