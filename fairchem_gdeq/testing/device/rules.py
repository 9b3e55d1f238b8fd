"""What CUDA refuses, and what makes the CPU wait for it: the rules that ``fake`` keeps.

Operations are known by their name in ATen, without namespace and overload; ``here`` tells whether a
tensor is on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Here = Callable[[Any], bool]

MEETING = {  # operations in which CPU tensors of any shape may meet those of a device
    *("copy_", "_copy_from", "_to_copy"),
    *("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"),
}
# Made of pointwise operations, or as lenient.
SCALARS = {"fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "allclose"}
PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "mv", "addmv", "dot", "vdot"}
COPIES = {"_to_copy", "copy_", "_copy_from"}
# Each makes the CPU wait, whatever its arguments.
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_lstsq", "linalg_matrix_exp"),
}
RANDOM_ORDER = {"histc", "kthvalue", "put_", "median.dim"}  # without a deterministic algorithm


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, which may be lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def refuse(func: Any, name: str, args: tuple, kwargs: dict[str, Any], here: Here) -> None:
    """Raise where CUDA does; the operation has to do with the device.

    Raises:
        RuntimeError: tensors of the CPU where they may not be, a generator of the CPU, a matrix product
            of integers, ``lstsq`` by another driver than gels, or an operation without a deterministic
            algorithm where one is asked for.
    """
    given = [*tensors(args), *tensors(kwargs.values())]
    _refuse_mixing(func, name, args, [x for x in given if not here(x)], here)
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
    if name in PRODUCTS and not (given[0].is_floating_point() or given[0].is_complex()):
        raise RuntimeError(f'"{name}_cuda" not implemented for {given[0].dtype}')
    if name == "linalg_lstsq" and kwargs.get("driver") not in (None, "gels"):
        raise RuntimeError(
            "torch.linalg.lstsq: parameter `driver` should be one of (gels) on a CUDA device, got "
            f"{kwargs['driver']!r}"
        )
    if torch.are_deterministic_algorithms_enabled() and _in_random_order(func, name, args, kwargs):
        raise RuntimeError(
            f"{name}_cuda does not have a deterministic implementation, but you set "
            "torch.use_deterministic_algorithms(True)"
        )


def _refuse_mixing(func: Any, name: str, args: tuple, others: list[Tensor], here: Here) -> None:
    """Raise where tensors of the CPU, ``others``, meet those of the device and may not."""
    mixed = f"{name}: Expected all tensors to be on the same device, but found also cpu: "
    if name not in MEETING:
        scalars = name in SCALARS or torch.Tag.pointwise in func.tags
        if wrong := [tuple(x.shape) for x in others if x.dim() or not scalars]:
            raise RuntimeError(f"{mixed}{wrong}")
        if others and name.endswith("_") and args[0] is others[0]:
            raise RuntimeError(f"{mixed}{tuple(args[0].shape)}, which would be written to")
    elif "index" in name:
        if not here(args[0]):
            raise RuntimeError(
                f"{name}: indices should be on the same device as the indexed tensor (cpu)"
            )
        if len(args) > 2 and not here(args[2]) and args[2].dim():
            raise RuntimeError(f"{mixed}{tuple(args[2].shape)}")


def _in_random_order(func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether ``torch.use_deterministic_algorithms`` has CUDA refuse it, by its documentation."""
    if func.name().removeprefix("aten::") in RANDOM_ORDER or name in RANDOM_ORDER:
        return True
    if name in ("cumsum", "cumsum_"):
        return args[0].is_floating_point() or args[0].is_complex()
    if name == "bincount":
        return (len(args) > 1 and args[1] is not None) or kwargs.get("weights") is not None
    return name.startswith("scatter_reduce") and "prod" in (*args[3:], kwargs.get("reduce"))


def waits(name: str, args: tuple, kwargs: dict[str, Any], here: Here, stays: bool) -> bool:
    """Whether the CPU waits for the device; ``stays``: the result is on the device."""
    if name in COPIES:
        return _copy_waits(name, args, kwargs, here, stays)
    if name in WAITING:
        return True
    if "index" in name and name in MEETING:
        # How many elements a mask selects must be known, and what is on the CPU is copied first.
        kinds = (torch.bool, torch.uint8)
        if any(not here(x) or x.dtype in kinds for x in tensors(args[1:2])):
            return True
        return any(not here(x) for x in tensors(args[2:3]))
    if name == "where":  # unlike in other pointwise operations, a number on the CPU is copied
        return any(not here(x) for x in tensors(args))
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None and here(args[-1])
    return False


def _copy_waits(name: str, args: tuple, kwargs: dict[str, Any], here: Here, stays: bool) -> bool:
    """Whether it waits for a copy between CPU and device.

    It does by default, either way. With ``non_blocking`` it does where the target is memory of the CPU
    that was there before, and is not pinned as PyTorch pins that of a new tensor.
    """
    if name == "_to_copy":
        return here(args[0]) != stays and not kwargs.get("non_blocking", False)
    target, source = args[:2] if name == "copy_" else args[1::-1]
    eager = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    return here(source) != here(target) and not (eager and here(target))


def late(name: str, args: tuple, kwargs: dict[str, Any], here: Here, stays: bool) -> bool:
    """Whether the result, a tensor of the CPU, has its values only after the next wait."""
    return name == "_to_copy" and here(args[0]) and not stays and kwargs.get("non_blocking", False)
