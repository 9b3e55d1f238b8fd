"""Pickles of PyG objects: what is read of honest ones, and that hostile ones never run."""

import builtins
import io
import os
import pickle
import posix
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairchem_gdeq.data import safe_pickle
from fairchem_gdeq.data.safe_pickle import RefusedPickle, load
from fairchem_gdeq.testing import pyg

HONEST = {
    "pos": torch.arange(12.0).reshape(4, 3),
    "view": torch.arange(12).reshape(4, 3)[1:, ::2],
    "wide": torch.ones(1, 3).expand(4, 3),
    "mask": torch.tensor([True, False]),
    "double": torch.tensor(2.0, dtype=torch.float64),
    "empty": torch.empty(0, 3),
    "array": np.arange(6.0).reshape(2, 3).T,
    "number": np.float64(0.25),
    "word": np.str_("Pt"),
    "sid": 7,
    "text": "slab",
    "list": [1, 2.0, None, {"a": (1, {2})}],
    "raw": b"",
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if torch.is_tensor(value):
            value = value.numpy()
        if isinstance(value, np.ndarray):
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)
        else:
            assert found[key] == value and type(found[key]) is type(value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("pack", [pyg.pyg1, pyg.pyg2])
def test_objects_of_both_generations_in_every_protocol(pack, protocol):
    same(load(pack(HONEST, protocol), "here"), HONEST)


def test_objects_of_the_installed_pyg():
    data = pytest.importorskip("torch_geometric.data")
    expected = {key: HONEST[key] for key in ("pos", "view", "array", "sid", "text")}
    same(load(pickle.dumps(data.Data(**expected)), "here"), expected)


def test_numpy_1_names_its_modules_otherwise():
    raw = pyg.pyg1({"array": np.arange(3), "number": np.float64(0.5)}, protocol=2)
    old = raw.replace(b"numpy._core", b"numpy.core")
    assert old != raw
    np.testing.assert_array_equal(load(old, "here")["array"], np.arange(3))


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(st.sampled_from(["f4", "f8", "i8", "i4", "u1", "?"]), hnp.array_shapes(max_dims=4)),
    st.sampled_from([2, 4, 5]),
    st.sampled_from([pyg.pyg1, pyg.pyg2]),
)
def test_any_tensor_and_array_come_back(value, protocol, pack):
    found = load(pack({"tensor": torch.from_numpy(value), "array": value}, protocol), "here")
    np.testing.assert_array_equal(found["tensor"], value)
    np.testing.assert_array_equal(found["array"], value)


class Call:
    """Pickles as a call of a function with arguments, then possibly a state."""

    def __init__(self, function, *arguments, state=None):
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.made


def written(*operations):
    """A pickle put together by hand."""
    return pickle.PROTO + bytes([2]) + b"".join(operations) + pickle.STOP


def named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def storage_of(value):
    """A call of torch's storage loader on a file of torch.save that holds ``value``."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


RUN = "touch hostile_ran"
HOSTILE = {
    "os.system": (Call(os.system, RUN), "posix.system"),
    "posix.system": (Call(posix.system, RUN), "posix.system"),
    "eval": (Call(builtins.eval, f"__import__('os').system({RUN!r})"), "builtins.eval"),
    "exec": (Call(exec, f"import os; os.system({RUN!r})"), "builtins.exec"),
    "getattr": (Call(getattr, 1, "real"), "builtins.getattr"),
    "import": (Call(__import__, "os"), "builtins.__import__"),
    "torch.load": (Call(torch.load, "hostile.pt"), "torch.serialization.load"),
    "in a storage": (storage_of(Call(os.system, RUN)), "posix.system inside torch.storage"),
    "eval in a storage": (storage_of(Call(builtins.eval, "1")), "eval inside torch.storage"),
    "in a list": ([1, {"a": (Call(os.system, RUN),)}], "posix.system"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("pack", [pyg.pyg1, pyg.pyg2, lambda fields: pickle.dumps(fields["bad"])])
def test_calls_outside_of_the_list_are_refused_by_name(tmp_path, monkeypatch, name, pack):
    monkeypatch.chdir(tmp_path)
    value, refused = HOSTILE[name]
    with pytest.raises(RefusedPickle, match=refused) as error:
        load(pack({**HONEST, "bad": value}), "data.lmdb, key 3")
    assert "data.lmdb, key 3" in str(error.value) and "nothing was run" in str(error.value)
    assert not (tmp_path / "hostile_ran").exists()


FUNCTION = named("torch._utils", "_rebuild_tensor_v2")
RECORD = named("torch_geometric.data.data", "Data")
SLOTS = pickle.NONE + b"}U\x05_callNs" + pickle.TUPLE2 + pickle.BUILD  # (None, {"_call": None})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (written(named("os", "path.join")), "os.path.join"),
        (written(named("torch", "storage._load_from_bytes")), "torch.storage._load_from_bytes"),
        (written(named("numpy", "load")), "numpy.load"),
        (written(named("builtins", "getattr")), "builtins.getattr"),
        (written(named("copyreg", "__newobj__")), "copyreg.__newobj__"),
        (written(FUNCTION, SLOTS), "sets the state of torch._utils._rebuild_tensor_v2"),
        (written(named("builtins", "dict"), SLOTS), "sets the state of builtins.dict"),
        (written(RECORD, pickle.EMPTY_TUPLE, pickle.NEWOBJ, SLOTS), "state of a PyG object"),
        (b"cos\nsystem\n(S'touch hostile_ran'\ntR.", "os.system"),
        (b"(S'touch hostile_ran'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'touch hostile_ran'\no.", "os.system"),
        (written(b"U\x01xQ"), "outside of the file"),
    ],
)
def test_tricks_with_the_pickle_language(tmp_path, monkeypatch, raw, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedPickle, match=message):
        load(raw, "here")
    assert not (tmp_path / "hostile_ran").exists()


def test_allowed_classes_cannot_be_altered():
    """A state for the class itself, (None, {"fields": None}), would set the class's attribute."""
    state = pickle.NONE + b"}U\x06fieldsNs" + pickle.TUPLE2 + pickle.BUILD
    before = dict(vars(safe_pickle._Record))
    with pytest.raises((RefusedPickle, TypeError)):
        load(written(RECORD, state), "here")
    assert dict(vars(safe_pickle._Record)) == before
    with pytest.raises(safe_pickle._RefusedError):
        safe_pickle._Record.__setstate__ = None


@pytest.mark.parametrize(
    "value",
    [
        Call(torch._utils._rebuild_tensor_v2, "no storage", 0, (1,), (1,), False, {}),
        Call(torch._utils._rebuild_tensor_v2, storage_of(torch.FloatStorage(2)), 0, (9,), (1,)),
        Call(torch._utils._rebuild_tensor_v2, storage_of(torch.FloatStorage(2)), -1, (1,), (1,)),
        storage_of([1, 2]),
        Call(torch.storage._load_from_bytes, "text"),
        Call(torch.storage._load_from_bytes, b"no torch file"),
        Call(np.dtype, "O8"),
        Call(np.dtype, [("a", "f4")]),
        Call(np.array(0).__reduce__()[0], dict, (0,), b"b"),
        np.array([print, Call(len, [])], dtype=object),
        Call(bytes, 10**12),
        Call(__import__("codecs").encode, "x", "rot13"),
        Call(dict, 5),
    ],
)
def test_allowed_functions_with_odd_arguments_are_refused(value):
    raw = pickle.dumps({"bad": value}, protocol=2)
    with pytest.raises(ValueError, match=r"here|arguments"):
        load(raw, "here")


@cache
def _intact() -> bytes:
    """Pickled once: torch writes a storage's address, so that the length differs between calls."""
    return pyg.pyg1({"pos": torch.ones(2, 3), "sid": 3})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_are_an_error_or_plain_data(data):
    raw = bytearray(_intact())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Exception):  # what is no Exception, such as SystemExit, fails the test
        load(bytes(raw), "here")
