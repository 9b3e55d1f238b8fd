"""Edge frames: rotations as e3nn and fairchem 1 have them, smooth where Euler angles are not."""

import math

import pytest
import torch
from e3nn import o3
from fairchem.core.models.equiformer_v2.so3 import SO3_Rotation

from fairchem_gdeq.fairchem1.frames import block_diagonal, frames, rotation_vector, wigner_blocks

Y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


def units(count: int = 40) -> torch.Tensor:
    """Directions, those along the axes among them."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    drawn = torch.randn(count, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(torch.cat([axes, drawn]), dim=-1)


@pytest.fixture
def _doubles():
    """What e3nn makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_doubles")
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.1, 1.0, 2.5, math.pi])
def test_wigner_blocks_are_exponentials_up_to_half_a_turn(angle):
    """Against PyTorch's, which chooses its polynomial by the norms, and e3nn's Euler angles."""
    lmax, axes = 8, units()
    blocks = wigner_blocks(angle * axes, lmax)
    singles = wigner_blocks((angle * axes).float(), lmax)
    euler = o3.axis_angle_to_angles(axes, torch.full((len(axes),), angle))
    for degree, block in enumerate(blocks):
        exponent = torch.einsum("ei,iab->eab", angle * axes, o3.so3_generators(degree))
        torch.testing.assert_close(block, torch.matrix_exp(exponent), rtol=0, atol=1e-13)
        one = torch.eye(2 * degree + 1).expand_as(block)
        torch.testing.assert_close(block @ block.mT, one, rtol=0, atol=2e-13)
        # Euler angles lose half of the digits near y.
        torch.testing.assert_close(o3.wigner_D(degree, *euler), block, rtol=0, atol=2e-6)
        torch.testing.assert_close(singles[degree].double(), block, rtol=0, atol=5e-6)


@pytest.mark.usefixtures("_doubles")
@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.1, 2.5, math.pi])
def test_wigner_blocks_have_a_derivative(angle):
    """Finite differences, and autograd through PyTorch's exponential."""
    rotation = (angle * units(2)[-2:]).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda r: wigner_blocks(r, 6)[1:], (rotation,), eps=1e-6)
    for degree in (1, 4, 6):
        generators = o3.so3_generators(degree)
        theirs = torch.matrix_exp(torch.einsum("ei,iab->eab", rotation, generators))
        weights = torch.randn(theirs.shape, generator=torch.manual_seed(1))
        pairs = (wigner_blocks(rotation, degree)[-1], theirs)
        mine, its = (torch.autograd.grad((m * weights).sum(), rotation)[0] for m in pairs)
        torch.testing.assert_close(mine, its, rtol=1e-11, atol=1e-11)


def test_wigner_blocks_of_no_edges():
    shapes = [tuple(block.shape) for block in wigner_blocks(torch.empty(0, 3), 2)]
    assert shapes == [(0, 1, 1), (0, 3, 3), (0, 5, 5)]


def test_smallest_rotation():
    start, end = units(), units().roll(1, 0)
    apart = (start * end).sum(-1) > -0.99
    start, end = start[apart], end[apart]
    omega = rotation_vector(start, end)
    matrix = wigner_blocks(omega, 1)[1]
    torch.testing.assert_close(torch.einsum("eij,ej->ei", matrix, start), end, atol=1e-12, rtol=0)
    angle = torch.acos((start * end).sum(-1).clamp(-1, 1))
    torch.testing.assert_close(omega.norm(dim=-1), angle, atol=1e-7, rtol=0)


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-4, 9e-3, 1.1e-2, 0.5, 2.5])
def test_rotation_vector_has_a_derivative_everywhere(apart):
    """On both sides of where the series takes over, and where there is no rotation at all."""
    start = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.8]]).double(), dim=-1)
    other = torch.nn.functional.normalize(torch.tensor([[0.1, 0.9, 0.5]]).double(), dim=-1)
    side = torch.nn.functional.normalize(torch.linalg.cross(start, other), dim=-1)
    end = (math.cos(apart) * start + math.sin(apart) * side).requires_grad_(True)
    torch.testing.assert_close(rotation_vector(start, end).norm(), torch.tensor(apart).double())
    assert torch.autograd.gradcheck(lambda e: rotation_vector(start, e), (end,), eps=1e-6)


def test_frames_take_the_edge_to_y():
    unit = units()
    roll = torch.linspace(0, 6, len(unit), dtype=torch.float64)
    turn = frames(unit, roll, 1)[1]
    torch.testing.assert_close(
        torch.einsum("eij,ej->ei", turn, unit), Y.expand_as(unit), atol=1e-12, rtol=0
    )
    other = frames(unit, roll + 0.7, 1)[1]
    about = wigner_blocks(0.7 * Y[None], 1)[1]
    torch.testing.assert_close(other, about @ turn, atol=1e-12, rtol=0)


def test_wigner_matrices_are_fairchems():
    """Its Wigner matrices of our rotations, away from y where its angles lose their digits."""
    lmax, unit = 4, units()
    blocks = frames(unit, torch.linspace(0, 6, len(unit)).double(), lmax)
    rotation = SO3_Rotation(lmax)
    rotation.device = torch.device("cpu")
    theirs = rotation.RotationToWignerDMatrix(blocks[1], 0, lmax).double()
    torch.testing.assert_close(block_diagonal(blocks), theirs, atol=2e-5, rtol=0)


def test_block_diagonal():
    blocks = [torch.randn(5, 2 * degree + 1, 2 * degree + 1) for degree in range(3)]
    expected = torch.stack([torch.block_diag(*parts) for parts in zip(*blocks, strict=True)])
    assert torch.equal(block_diagonal(blocks), expected)
