"""PyG ``Data`` objects out of pickles of PyG 1 and 2, without PyG and without running anything.

A pickle names the functions that rebuild its objects, so it can call whatever it likes. Here every
name is looked up in a short table. What the table gives are stand-ins of this module, which check
their arguments and cannot be altered by the pickle; nothing of torch, numpy or PyG is handed out.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fairchem_gdeq.data.rows import BadRow


class RefusedPickle(BadRow):
    """A record whose pickle asks for something outside the allow-list. It did not get it."""


class _RefusedError(Exception):
    """The same, before the record is known: what the pickle does."""


class _Sealed(type):
    """Classes whose attributes a pickle cannot set (its BUILD instruction can set any object's)."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise _RefusedError(f"sets {name} of {cls.__name__}")


class _Record(metaclass=_Sealed):
    """Stands for a PyG ``Data`` or storage: the state that was pickled, as ``fields``."""

    __slots__ = ("fields",)

    def __new__(cls) -> _Record:
        record = super().__new__(cls)
        record.fields = {}
        return record

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise _RefusedError(f"a state of a PyG object that is a {type(state).__name__}")
        self.fields = state


class _DType(metaclass=_Sealed):
    """Stands for a numpy dtype of plain numbers or text."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise _RefusedError(f"numpy.dtype with byte order {state[1]!r}")
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array(metaclass=_Sealed):
    """Stands for an array or tensor; ``value`` is the array."""

    __slots__ = ("value",)

    def __init__(self, value: NDArray[Any]) -> None:
        self.value = value

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


class _Storage(metaclass=_Sealed):
    """Stands for a torch storage; ``flat`` is a tensor of all its elements."""

    __slots__ = ("flat",)

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("sets the state of a torch storage")


class _Function(metaclass=_Sealed):
    """An allowed function: callable, and nothing else can be done with it."""

    __slots__ = ("_call", "_name")
    _call: Callable[..., object]
    _name: str

    def __init__(self, name: str, call: Callable[..., object]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: object) -> None:
        raise _RefusedError(f"sets {name} of {self._name}")

    def __setstate__(self, state: object) -> None:
        raise _RefusedError(f"sets the state of {self._name}")

    def __call__(self, *arguments: object) -> object:
        try:
            return self._call(*arguments)
        except _RefusedError:
            raise
        except Exception as error:
            # Not refused: damaged bytes do this too, and nothing was asked that is not allowed.
            raise ValueError(f"{self._name} cannot take its arguments: {error}") from error


def _array(
    raw: object, dtype: object, shape: tuple[int, ...], order: Literal["C", "F"]
) -> NDArray[Any]:
    if not isinstance(dtype, _DType) or not isinstance(raw, bytes | bytearray | memoryview):
        raise _RefusedError("a numpy array that is not of plain numbers or text")
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)


def _dtype(code: object, *_: object) -> _DType:
    # No "O": an array of objects can hold anything.
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|[US]\d{1,6}", code):
        raise _RefusedError(f"numpy.dtype({code!r})")
    return _DType(code)


def _frombuffer(
    raw: object, dtype: object, shape: tuple[int, ...], order: Literal["C", "F"], axes: None = None
) -> _Array:
    if axes is not None:
        raise _RefusedError("a numpy array with permuted axes")
    return _Array(_array(raw, dtype, shape, order))


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _NDARRAY:
        raise _RefusedError("numpy's _reconstruct of something that is not an ndarray")
    return _Array(np.empty(0))


def _scalar(dtype: object, raw: object) -> object:
    return _array(raw, dtype, (), "C")[()]


def _load_storage(raw: object) -> _Storage:
    """What torch.storage._load_from_bytes does, but with torch's own safe loader."""
    if not isinstance(raw, bytes | bytearray):
        raise _RefusedError(f"torch.storage._load_from_bytes of a {type(raw).__name__}")
    try:
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL\s+(\S+)", str(error))
        if named is None:
            raise
        raise _RefusedError(f"calls {named[1]} inside torch.storage._load_from_bytes") from error
    if not isinstance(storage, torch.storage.TypedStorage):
        raise _RefusedError(f"a torch storage that is a {type(storage).__name__}")
    return _Storage(torch.empty(0, dtype=storage.dtype).set_(storage))


def _rebuild_tensor(
    storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Array:
    if not isinstance(storage, _Storage):
        raise _RefusedError(f"a torch tensor on a {type(storage).__name__}")
    # as_strided checks that no element lies outside of the storage; hooks (in _) are dropped.
    return _Array(storage.flat.as_strided(size, stride, offset).numpy())


def _reconstructor(kind: object, base: object, state: object) -> _Record:
    """copyreg._reconstructor, by which protocols 0 and 1 make an object of a class."""
    if kind is not _Record or base is not _OBJECT or state is not None:
        raise _RefusedError("copyreg._reconstructor of something that is not a PyG object")
    return _Record()


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":  # how protocols below 3 write bytes
        raise _RefusedError(f"_codecs.encode to {codec!r}")
    return text.encode(codec)


def _empty_bytes() -> bytes:
    return b""


_NDARRAY, _OBJECT = object(), object()

_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch", "Size"): tuple,
    ("numpy", "dtype"): _dtype,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _empty_bytes,
    **{("builtins", kind.__name__): kind for kind in (list, tuple, dict, set, frozenset, complex)},
}
for _core in ("numpy.core", "numpy._core"):
    _FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _FUNCTIONS[f"{_core}.multiarray", "scalar"] = _scalar
    _FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = _frombuffer

ALLOWED: dict[tuple[str, str], object] = {
    **{(m, n): _Function(f"{m}.{n}", call) for (m, n), call in _FUNCTIONS.items()},
    ("torch_geometric.data.data", "Data"): _Record,
    ("torch_geometric.data.data", "DataTensorAttr"): _Record,
    ("torch_geometric.data.data", "DataEdgeAttr"): _Record,
    ("torch_geometric.data.storage", "GlobalStorage"): _Record,
    ("numpy", "ndarray"): _NDARRAY,
    ("builtins", "object"): _OBJECT,
}
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # written by protocols below 3


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        found = ALLOWED.get((_PYTHON2.get(module, module), name))
        if found is None:
            raise _RefusedError(f"calls {module}.{name}")
        return found

    def persistent_load(self, pid: object) -> object:
        raise _RefusedError(f"refers to an object outside of the file ({pid!r})")


def load(raw: bytes, where: str) -> object:
    """A pickled plain value, or a PyG ``Data`` as a dict: its attributes, tensors as numpy arrays.

    Args:
        raw: the pickle, any protocol.
        where: file and key, for messages.

    Raises:
        RefusedPickle: the pickle names something outside ``ALLOWED``; it was not called.
        Exception: whatever the pickle module raises on damaged bytes.
    """
    try:
        value = _Unpickler(io.BytesIO(raw)).load()
    except _RefusedError as error:
        raise RefusedPickle(
            where,
            f"refused, its pickle {error}. Only PyG Data of tensors, arrays and plain values is "
            "read, and nothing was run. Unless it is damaged, do not trust this file.",
        ) from error
    if not isinstance(value, _Record):
        return value
    fields: object = value.fields
    if isinstance(store := value.fields.get("_store"), _Record):  # PyG 2
        fields = store.fields.get("_mapping")
    if not isinstance(fields, dict):
        raise ValueError(f"a PyG 2 Data without a mapping, but a {type(fields).__name__}")
    return {
        key: item.value if isinstance(item, _Array) else item
        for key, item in fields.items()
        if item is not None
    }
