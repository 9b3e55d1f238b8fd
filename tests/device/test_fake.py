"""The pretended device itself: it computes as the CPU does, refuses what CUDA refuses, counts waits."""

import copy
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def device(device):
    """Only the pretended one is tested here."""
    if device.type != "fake":
        pytest.skip("of the pretended device")
    return device


def counted():
    from fairchem_gdeq.testing.device.counting import counted

    return counted()


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_a_device_of_its_own(device):
    x = numbers(4, 3).to(device)
    assert x.device == torch.device("fake:0") and not x.is_cpu and x.is_cuda
    assert (x + 1).device == x.device == x.mean().device == x[0].device == x.new_zeros(2).device
    assert x.cpu().device.type == "cpu" and type(x.cpu()) is torch.Tensor
    assert not torch.cuda.is_available()


@pytest.mark.parametrize(
    "make",
    [
        lambda **where: torch.tensor([[1.0, 2.0], [3.0, 4.0]], **where),
        lambda **where: torch.as_tensor(3.0, **where),
        lambda **where: torch.tensor([[1, torch.full((), 7, **where)]], **where),
        lambda **where: torch.arange(1, 9, 2, **where),
        lambda **where: torch.eye(3, **where),
        lambda **where: torch.linspace(0, 1, 5, **where),
        lambda **where: torch.full((2, 2), 7, **where),
        lambda **where: torch.tril_indices(3, 3, **where),
        lambda **where: torch.zeros(2, dtype=torch.bool, **where),
        lambda **where: torch.ones(2, 1, **where),
    ],
)
def test_tensors_can_be_made_on_it(device, make):
    made = make(device=device)
    assert made.device == device and torch.equal(made.cpu(), make())


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.einsum("ni,nj->ij", x, x),
        lambda x: torch.nn.functional.scaled_dot_product_attention(*(x[None, None],) * 3),
        lambda x: x.index_add(0, torch.tensor([0, 0, 1, 3]).to(x.device), x).sort(dim=0).values,
        lambda x: torch.linalg.pinv(x) @ x,
        lambda x: x[[0, 2]].cumsum(0).exp(),
        lambda x: torch.nn.functional.layer_norm(x, (3,)),
        lambda x: checkpoint(lambda y: y.sin() * y, x, use_reentrant=False),
        lambda x: torch.stack([x.clone().mul_(2), torch.where(x > 0, x, 0.0)]),
    ],
)
def test_values_and_gradients_are_those_of_the_cpu(device, operation):
    results = []
    for where in (torch.device("cpu"), device):
        x = numbers(4, 3).to(where).requires_grad_(True)
        out = operation(x)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        assert out.device.type == grad.device.type == where.type
        results.append((out.detach().cpu(), grad.cpu()))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_views_share_memory_and_copies_do_not(device):
    x = torch.zeros(4, 3, device=device)
    x[1] += 1
    x.view(12)[:2].fill_(5)
    x[:, 2].copy_(torch.tensor([7.0, 8.0, 9.0, 10.0]))
    assert x.tolist() == [[5, 5, 7], [1, 1, 8], [0, 0, 9], [0, 0, 10]]
    other = copy.deepcopy(x)
    other.zero_()
    assert x.sum().item() == 46


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: torch.ones(2, 4) @ x,
        lambda x: torch.ones(4)[torch.tensor([1]).to(x.device)],
        lambda x: torch.ones(4, 3)[x > 0],
        lambda x: x.index_add(0, torch.tensor([0]), x[:1]),
        lambda x: x.index_put((torch.tensor([0]),), torch.ones(1, 3)),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.tensor(1.0).add_(x.sum()),
        lambda x: torch.ones(4, 3).index_add_(0, torch.tensor([0]), x[:1]),
        lambda x: x.long() @ x.long().T,
        lambda x: torch.linalg.lstsq(x, x, driver="gelsd"),
        lambda x: torch.randn(3, device=x.device, generator=torch.Generator()),
    ],
)
def test_what_cuda_refuses_is_refused(device, mistake):
    with pytest.raises(RuntimeError, match=r"device|not implemented|driver|indices"):
        mistake(numbers(4, 3).to(device))


def test_no_numpy(device):
    x = torch.ones(2, device=device)
    for convert in (np.asarray, np.array, lambda y: y.numpy()):
        with pytest.raises(TypeError, match=r"Tensor.cpu\(\)"):
            convert(x)
    assert x.cpu().numpy().tolist() == [1, 1]


def test_what_cuda_allows_is_allowed(device):
    x = numbers(4, 3).to(device)
    assert (x * torch.tensor(2.0)).device == device
    assert x[torch.tensor([True, False, True, False])].shape == (2, 3)
    x[torch.tensor([0, 1])] = 5.0
    x.masked_fill_(x == 5.0, torch.tensor(6.0))
    assert torch.empty(4, 3).copy_(x)[:2].tolist() == [[6.0] * 3] * 2
    assert torch.linalg.lstsq(x, x, driver="gels").solution.device == device


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.cumsum(0),
        lambda x: torch.bincount(torch.tensor([0, 1], device=x.device), weights=x[0, :2]),
        lambda x: x.median(0),
    ],
)
def test_deterministic_mode_refuses_what_it_refuses_on_cuda(device, operation):
    x = numbers(4, 3).to(device)
    operation(x)
    torch.use_deterministic_algorithms(True)
    try:
        x.long().cumsum(0)
        with pytest.raises(RuntimeError, match="deterministic"):
            operation(x)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_mistake_in_a_backward_pass_is_raised(device, monkeypatch, checkpointed, cached):
    """Below C++ nodes, in autograd's own thread, where PyTorch would end the process.

    Also where Python has forgotten the attributes of types, which it looks up again then.
    """
    from fairchem_gdeq.testing.device import fake, rules

    refuse = fake.refuse

    def forgetting(*args):
        try:
            refuse(*args)
        finally:
            sys._clear_type_cache()

    if not cached:
        monkeypatch.setattr(fake, "refuse", forgetting)

    x, mask = numbers(4, 3).to(device).requires_grad_(True), torch.tensor([True, False, True, True])

    def loss():
        pick = lambda y: y[mask].square()  # noqa: E731
        out = checkpoint(pick, x, use_reentrant=False) if checkpointed else pick(x)
        return out.sum()

    with monkeypatch.context() as stricter:
        stricter.setattr(rules, "MEETING", rules.MEETING - {"index_put"})
        with pytest.raises(RuntimeError, match="index_put: Expected all tensors to be on the same"):
            loss().backward()
    assert x.grad is None
    loss().backward()
    torch.testing.assert_close(x.grad.cpu(), 2 * x.detach().cpu() * mask[:, None])


def test_shapes_do_not_change_in_place(device):
    with pytest.raises(NotImplementedError, match="shape in place"):
        torch.ones(3, device=device).unsqueeze_(0)


@pytest.mark.parametrize(
    ("operation", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: torch.empty(4, 3).copy_(x), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.index_put_((x > 0,), torch.tensor(0.0)), 1),
        (lambda x: (x > 0).nonzero(), 1),
        (lambda x: torch.where(x > 0), 1),
        (lambda x: torch.masked_select(x, x > 0), 1),
        (lambda x: torch.unique(x), 1),
        (lambda x: torch.unique(x, dim=0), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: torch.allclose(x[0, 0], torch.tensor(1.0)), 1),
        (lambda x: torch.bincount((x[:, 0] > 0).long()), 1),
        (lambda x: x.repeat_interleave((x[:, 0] > 0).long(), dim=0), 1),
        (lambda x: torch.linalg.inv(x.T @ x), 1),
        (lambda x: torch.matrix_exp(x[:3]), 1),
        # Copies, either way; the device's own numbers and indices need none.
        (lambda x: torch.zeros(4, 3).to(x.device), 1),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: x.new_tensor(1.0), 1),
        (lambda x: x.copy_(torch.zeros(4, 3)), 1),
        (lambda x: x.copy_(torch.zeros(4, 3), non_blocking=True), 0),
        (lambda x: x.copy_(torch.zeros(4, 3), True), 0),
        (lambda x: torch.zeros(4, 3).to(x.device, non_blocking=True), 0),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: x.to("cpu", torch.float64, non_blocking=True), 0),
        (lambda x: torch.empty(4, 3).copy_(x, non_blocking=True), 1),  # not pinned
        (lambda x: x.new_full((2,), 1.0).copy_(x[0, :2]), 0),
        (lambda x: x.to(torch.float64), 0),
        (lambda x: x[torch.tensor([0, 1])], 1),
        (lambda x: x[[0, 2]], 1),
        (lambda x: x[torch.tensor([True, False, True, False])], 1),
        (lambda x: x.index_put_((x[:, 0].long() * 0,), torch.tensor(0.0)), 1),
        (lambda x: x[x[:, 0].long() * 0], 0),
        (lambda x: x.repeat_interleave((x[:, 0] * 0).long() + 1, dim=0, output_size=4), 0),
        (lambda x: torch.where(x > 0, x, 0.0), 0),
        (lambda x: torch.where(x > 0, x, torch.tensor(0.0)), 1),
        (lambda x: x * torch.tensor(2.0), 0),
    ],
)
def test_waits_are_counted(device, operation, waits):
    x = numbers(4, 3).to(device)
    with counted() as all_, counted() as counts:
        operation(x)
    assert counts.waits.total() == waits, counts.waits
    assert all_ == counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.long, torch.bool])
def test_a_copy_is_not_read_before_the_next_wait(device, dtype):
    """One without a wait holds no values yet: also those of what the device does later are not in it."""
    x = torch.tensor([[0, 1], [1, 0]]).to(dtype).to(device)
    early = x.to("cpu", non_blocking=True)
    expected = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    assert (early != expected).all()
    x.zero_()
    assert (early != expected).all()
    assert not x.any().item()
    assert torch.equal(early, expected)


def test_a_late_copy_has_its_derivative(device):
    x = numbers(3).to(device).requires_grad_(True)
    late = x.to("cpu", non_blocking=True)
    x.sum().item()
    late.square().sum().backward()
    torch.testing.assert_close(x.grad.cpu(), 2 * x.detach().cpu())


def test_kernels_are_counted_and_views_are_not(device):
    x = numbers(4, 3).to(device)
    with counted() as counts:
        y = x[1:].T.reshape(3, 3).detach()
        y.exp().add_(1)
        (numbers(2) + 1).exp()  # on the CPU
    assert counts.kernels == {"exp": 1, "add_": 1}


def test_modules_keep_their_parameters_when_they_move(device):
    model = torch.nn.Linear(3, 2)
    weight, optimizer = model.weight, torch.optim.AdamW(model.parameters(), lr=0.1)
    model.to(device)
    assert model.weight is weight and weight.device == device and model.weight.is_leaf
    before = model.weight.detach().cpu().clone()
    model(torch.ones(1, 3, device=device)).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert (model.weight.detach().cpu() != before).all()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert next(averaged.parameters()).device == device


def test_saved_tensors_come_back_on_the_device_if_there_is_one(device):
    file = io.BytesIO()
    torch.save({"x": numbers(2, 2).to(device)}, file)

    def load(**where):
        file.seek(0)
        return torch.load(file, weights_only=True, **where)["x"]

    from fairchem_gdeq.testing.device.fake import absent

    assert load().device == device and torch.equal(load().cpu(), numbers(2, 2))
    assert torch.equal(load(map_location="cpu"), numbers(2, 2))
    with absent():
        assert torch.equal(load(map_location="cpu"), numbers(2, 2))
        with pytest.raises(RuntimeError, match="map_location"):
            load()


def test_nothing_but_the_backend_stays():
    """Outside of ``using`` PyTorch is itself: in a process of its own, where no test has been before."""
    code = """if True:
        import torch, fairchem_gdeq.testing.device.fake as fake
        before = torch.autograd._engine_run_backward, torch.nn.Module._apply
        now = lambda: (torch.autograd._engine_run_backward, torch.nn.Module._apply)
        with fake.using():
            assert torch.accelerator.is_available()
            assert now() != before
        assert not torch.accelerator.is_available() and not torch.cuda.is_available()
        assert now() == before
        assert not torch.__future__.get_swap_module_params_on_conversion()
        x = torch.ones(2, requires_grad=True)
        x.square().sum().backward()
        assert x.grad.tolist() == [2, 2] and torch.ones(1).device.type == "cpu"
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_it_is_loaded_only_where_a_test_asks_for_it(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n\ndef test_it():\n"
        "    assert 'fairchem_gdeq.testing.device.fake' not in sys.modules\n"
        "def test_that(device):\n    assert device.type == 'cpu'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml")]
    command += ["--confcutdir", str(ROOT), "-p", "tests.conftest", "--device", "cpu"]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
