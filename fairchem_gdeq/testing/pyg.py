"""Legacy LMDBs as the old tools wrote them: pickles of PyG 1 and PyG 2 objects, without PyG.

The classes are stubs with the names of PyG's, whose state has the form that PyG's has.
"""

from __future__ import annotations

import pickle
import sys
import types
from contextlib import contextmanager
from unittest import mock

import lmdb
import numpy as np
import torch
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms

PYG1_DEFAULTS = ("x", "edge_index", "edge_attr", "y", "normal", "face")


@contextmanager
def _stubs(*classes):
    """torch_geometric as modules that hold these classes and nothing else."""
    modules = {"torch_geometric": types.ModuleType("torch_geometric")}
    modules["torch_geometric.data"] = types.ModuleType("torch_geometric.data")
    for cls in classes:
        name = cls.__module__
        modules.setdefault(name, types.ModuleType(name))
        setattr(modules[name], cls.__name__, cls)
    with mock.patch.dict(sys.modules, modules):
        yield


def _stub(name, module):
    return type(name, (), {"__module__": f"torch_geometric.data.{module}"})


def pyg1(fields, protocol=pickle.HIGHEST_PROTOCOL):
    """A ``Data`` of PyG 1: its attributes, many of them None, are its ``__dict__``."""
    data_class = _stub("Data", "data")
    data = data_class()
    data.__dict__.update(dict.fromkeys(PYG1_DEFAULTS))
    data.__dict__.update(fields)
    with _stubs(data_class):
        return pickle.dumps(data, protocol)


def pyg2(fields, protocol=pickle.HIGHEST_PROTOCOL):
    """A ``Data`` of PyG 2: a storage with a mapping and a way back, and two classes by name."""
    data_class, storage_class = _stub("Data", "data"), _stub("GlobalStorage", "storage")
    tensor, edge = _stub("DataTensorAttr", "data"), _stub("DataEdgeAttr", "data")
    data, store = data_class(), storage_class()
    store.__dict__.update(_mapping=dict(fields), _parent=data)
    data.__dict__.update(_tensor_attr_cls=tensor, _edge_attr_cls=edge, _store=store)
    with _stubs(data_class, storage_class, tensor, edge):
        return pickle.dumps(data, protocol)


def slab(index=0):
    """Oxygen on platinum, lowest layer fixed, tags as in OC20, and a target; relaxed is 0.1 off."""
    rng = np.random.default_rng(index)
    atoms = fcc111("Pt", (2, 2, 3), vacuum=6.0)
    add_adsorbate(atoms, "O" if index % 2 else "N", 1.3, "fcc")
    atoms.pbc = True
    lowest = atoms.positions[:, 2] < atoms.positions[:, 2].min() + 0.1
    atoms.set_tags([0 if low else 1 for low in lowest[:-1]] + [2])
    atoms.set_constraint(FixAtoms(np.flatnonzero(lowest)))
    atoms.positions += np.where(lowest[:, None], 0, rng.normal(scale=0.05, size=(len(atoms), 3)))
    move = rng.normal(scale=0.1, size=(len(atoms), 3))
    atoms.info["pos_relaxed"] = atoms.positions + np.where(lowest[:, None], 0, move)
    return atoms


def fields(atoms, sid=0, oc22=False):
    """What a row of OC20 (or of OC22, with fewer and other keys) holds."""
    n = len(atoms)
    out = {
        "pos": torch.tensor(atoms.positions, dtype=torch.float32),
        "cell": torch.tensor(np.asarray(atoms.cell)[None], dtype=torch.float32),
        "atomic_numbers": torch.tensor(atoms.numbers, dtype=torch.float32),
        "natoms": n,
        "pos_relaxed": torch.tensor(atoms.info["pos_relaxed"], dtype=torch.float32),
        "fixed": torch.zeros(n),
        "sid": sid,
        "y_init": 1.5,
        "y_relaxed": -0.5,
    }
    for constraint in atoms.constraints:
        out["fixed"][constraint.index] = 1
    if oc22:
        out |= {"oc22": 1, "nads": 1, "lengths": torch.tensor([n])}
    else:
        out["tags"] = torch.tensor(atoms.get_tags())
        out["edge_index"] = torch.zeros((2, 5), dtype=torch.long)
    return out


def write(path, records, length=True):
    """An LMDB of pickles under "0", "1", ...; None leaves a gap."""
    env = lmdb.open(str(path), subdir=False, map_size=2**28)
    with env.begin(write=True) as transaction:
        for key, record in enumerate(records):
            if record is not None:
                transaction.put(str(key).encode(), record)
        if length:
            transaction.put(b"length", pickle.dumps(len(records)))
    env.close()
    path.with_name(path.name + "-lock").unlink()


def legacy(path, count=4, pack=pyg1, oc22=False, length=True):
    """A legacy LMDB of ``count`` slabs, and the slabs."""
    slabs = [slab(i) for i in range(count)]
    write(path, [pack(fields(a, 100 + i, oc22)) for i, a in enumerate(slabs)], length)
    return slabs
