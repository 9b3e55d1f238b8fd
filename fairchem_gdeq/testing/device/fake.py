"""An accelerator that is not there: what code written for CUDA does is tried on a CPU.

A tensor on device ``fake`` (``fake:0``) holds CPU memory and computes there, so that a result is the
CPU's own, while CUDA's rules are kept (``rules.py``): no mixing with CPU tensors, no ``.numpy()``, no
operation that only a CPU has. ``torch.cuda.is_available()`` stays what it is. Operations are counted
(``counting.py``), and what is copied to the CPU without a wait is wrong until the next one
(``copies.py``).

What it cannot tell: speed, memory, the order of atomic additions, and random numbers of a device's own
(they are those of the CPU's generator, so that results can be compared). Foreach optimizers are not
used, because PyTorch has none for a subclass of ``Tensor``.

Importing this module registers the backend for the life of the process. That must be before the process's
first backward pass, when autograd starts one thread for each device (``tests/conftest.py`` sees to it).
Outside ``using`` PyTorch is otherwise as it was, and ``torch.accelerator.is_available()`` is false.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

from fairchem_gdeq.testing.device.copies import arrive, leave
from fairchem_gdeq.testing.device.counting import count
from fairchem_gdeq.testing.device.rules import late, refuse, tensors, waits

NAME = "fake"
BELOW = {"_to_copy", "_copy_from", "copy_", "_local_scalar_dense"}


class FakeTensor(Tensor):
    """A tensor that says it is on ``fake``.

    Attributes:
        raw: its memory, a CPU tensor.
    """

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> FakeTensor:
        """A tensor on the device that shares the memory of a CPU tensor."""
        made = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Every operation below autograd comes here."""
        return run(func, *args, **(kwargs or {}))

    def __repr__(self) -> str:
        return f"FakeTensor({self.raw}, device={self.device})"

    @property
    def is_cuda(self) -> bool:
        """True: libraries ask it where they mean any accelerator (PyG, when it collates)."""
        return True

    def tolist(self) -> Any:
        """By way of a copy, as a tensor on a GPU."""
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as on a GPU."""
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    @property
    def data(self) -> Tensor:
        """The values without autograd; what is assigned to it gives this tensor its memory."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, FakeTensor) or other.shape != self.shape:
            raise RuntimeError(
                f".data of a tensor {tuple(self.shape)} on {self.device} cannot become one "
                f"{tuple(other.shape)} on {other.device}"
            )
        self.raw = other.raw

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As PyTorch pickles tensors of a device without storage: they come back on the device."""
        rebuilt = (self.raw.detach(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, rebuilt

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            copied = FakeTensor(self.raw.detach().clone()).requires_grad_(self.requires_grad)
            copied.__dict__ |= {k: v for k, v in self.__dict__.items() if k != "raw"}
            memo[id(self)] = copied
        return memo[id(self)]


def here(x: Any) -> bool:
    """Whether something is a tensor on the device."""
    return isinstance(x, FakeTensor)


def run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation, done on the CPU's memory once CUDA would not refuse it.

    Raises:
        RuntimeError: CUDA refuses it.
        NotImplementedError: it changes the shape of a tensor in place, which this device cannot do.
    """
    name = func.name().removeprefix("aten::").split(".")[0]
    given = [*tensors(args), *tensors(kwargs.values())]
    wanted = kwargs.get("device")
    stays = any(map(here, given)) if wanted is None else torch.device(wanted).type == NAME
    if stays or any(map(here, given)):
        refuse(func, name, args, kwargs, here)
        waited = waits(name, args, kwargs, here, stays)
        count(name, waited, kernel=not func.is_view)
        if waited:
            arrive()
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    out = func(*_map(_raw, args), **{key: _map(_raw, value) for key, value in kwargs.items()})
    if any(_raw(x).shape != x.shape for x in given):
        raise NotImplementedError(f"{func}: the {NAME} device cannot change a shape in place")
    if late(name, args, kwargs, here, stays):
        leave(out)
    # What is written in place, or into out=, comes back as the very tensor that was given.
    known = {id(_raw(x)): x for x in given}

    def returned(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return known.get(id(x)) if id(x) in known else FakeTensor(x) if stays else x

    return _map(returned, out)


def _raw(x: Any) -> Any:
    return x.raw if isinstance(x, FakeTensor) else x


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """Arguments and results of operations are single values, or lists and tuples of them."""
    if isinstance(value, list | tuple):
        return type(value)(_map(change, x) for x in value)
    return change(value)


# ---- the backend ---------------------------------------------------------------------------------

_failures: list[BaseException] = []
# Looked up here: a type's attribute that is not in Python's cache is looked up without the exception that
# is on its way (``_PyType_Lookup`` clears it).
_raise_what_is_on_its_way = ctypes.pythonapi.PyErr_Occurred


class _Stream:
    """The device's only stream, which does at once whatever it is asked for, late copies apart."""

    def wait_stream(self, other: _Stream) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Copies to the CPU have their values."""
        arrive()


class _Module(backend_registration._DummyBackendModule):
    """``torch.fake``: what PyTorch asks a device's module for, of which there is one inside ``using``."""

    available = False
    only = _Stream()

    def is_available(self) -> bool:
        return self.available

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def current_stream(self) -> _Stream:
        return self.only

    def stream(self, stream: _Stream) -> AbstractContextManager[None]:
        return nullcontext()


class _Guard(backend_registration._DummyDeviceGuard):
    """PyTorch asks it for the device while an exception passes, too, and then ends the process.

    So an exception in a backward pass is taken away here, and raised when the pass is over (``using``).
    """

    def type_(self) -> Any:
        try:
            _raise_what_is_on_its_way()
        except BaseException as error:
            _failures.append(error)
        return torch._C._autograd.DeviceType.PrivateUse1


_module = _Module()
backend_registration._setup_privateuseone_for_python_backend(NAME, _module, device_guard=_Guard())
DEVICE = torch.device(NAME, 0)


def _register() -> list[torch.library.Library]:
    """Kernels of the device: ``run`` for all, and by name for those whose own would end in C++.

    That is what ``torch.tensor`` does below Python, and the functions that make a tensor from nothing,
    some of which resize an empty one.
    """
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(run, dispatch_key="PrivateUse1")
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        arguments = {a.name: str(a.type) for a in schema.arguments}
        makes = "device" in arguments and not any("Tensor" in t for t in arguments.values())
        if space == "aten" and (makes or name in BELOW):
            packet = getattr(torch.ops.aten, name)
            func = getattr(packet, schema.overload_name or "default", None)
            if func is not None:  # some are TorchScript's alone
                aten.impl(func.name().removeprefix("aten::"), partial(run, func), "PrivateUse1")
    return [every, aten]


_libraries = _register()


@contextmanager
def using() -> Iterator[torch.device]:
    """The device, available to whoever asks, with four things of PyTorch changed for as long.

    ``Module.to`` swaps parameters in place, where it would replace those that become another type of
    tensor: on a GPU, too, the optimizer's parameters are those of the model that was moved. An exception
    in a backward pass comes out as itself. ``torch.load`` heeds ``map_location``. And pinned memory,
    which loaders use where there is an accelerator, is any memory.
    """
    engine, apply = torch.autograd._engine_run_backward, torch.nn.Module._apply
    from_file = torch.load
    swapping = torch.__future__.set_swap_module_params_on_conversion

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        _failures.clear()
        try:
            return engine(*args, **kwargs)
        except SystemError:
            if _failures:
                raise _failures[0] from None
            raise

    def apply_in_place(module: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
        before = torch.__future__.get_swap_module_params_on_conversion()
        swapping(any(p is not None and fn(p) is not p for p in module._parameters.values()))
        try:
            return apply(module, fn, recurse)
        finally:
            swapping(before)

    def load(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        content = from_file(*args, map_location=map_location, **kwargs)
        if map_location is not None:
            return tree_map_only(FakeTensor, lambda x: x.to(map_location), content)
        if not _module.available and any(map(here, tree_leaves(content))):
            raise RuntimeError(
                f"Attempting to deserialize object on a {NAME} device, which is not available. Use "
                "torch.load with map_location=torch.device('cpu') to map your storages to the CPU."
            )
        return content

    _module.available, torch.load, Tensor.pin_memory = True, load, Tensor.clone
    torch.autograd._engine_run_backward, torch.nn.Module._apply = run_backward, apply_in_place
    try:
        yield DEVICE
    finally:
        _module.available, torch.load = False, from_file
        del Tensor.pin_memory  # that of its C++ base shows again
        torch.autograd._engine_run_backward, torch.nn.Module._apply = engine, apply


@contextmanager
def absent() -> Iterator[None]:
    """Inside, the machine has no such device: what was saved on it can only be loaded elsewhere."""
    _module.available = False
    try:
        yield
    finally:
        _module.available = True
