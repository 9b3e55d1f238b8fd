"""Malformed files, data, checkpoints and commands: each ends the real command with one sentence.

Together with the numbers and words of ``test_config_rules``, more than 120 inputs.
"""

import copy
import shutil
import warnings
from contextlib import suppress
from functools import reduce

import numpy as np
import pytest
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fairchem_gdeq.data.is2rs import IS2RSDataset
from fairchem_gdeq.data.lmdb_file import DamagedFile
from fairchem_gdeq.data.reading import read_row
from fairchem_gdeq.data.rows import HEAVIEST, LIGHTEST, BadRow, free_atoms, masses
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.training.preflight import refusals
from fairchem_gdeq.training.same_run import settings_of
from tests import commands
from tests.fairchem2.malformed import CASES, CONFIGS, cut
from tests.fairchem2.running import ROOT, fairchem
from tests.fairchem2.test_config_rules import CASES as OF_CONFIGS
from tests.fairchem2.test_config_rules import composed, places

# One of each kind, for the suite that runs always.
CHEAP = (
    "base_missing",
    "data_tested_on_val",
    "key_unknown",
    "base_truncated",
    "row_with_nan_start",
)
# No table of a training: that in itself would be refused (test_going_on.py).
EARLIER = ("test_structures.png", "validate/test.json", "predictions/test.extxyz")


def slow_but(names, cheap=()):
    return [pytest.param(n, marks=[] if n in cheap else pytest.mark.slow) for n in names]


def last_line(done):
    """The last line of stderr, without what torch puts before the lines of a rank."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("[rank0]: ") if lines else ""


@pytest.fixture
def earlier(tmp_path):
    """A run's folder with results of an earlier run."""
    results = tmp_path / "run" / "gdeq" / "results"
    for name in EARLIER:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text("of an earlier run")
    return results


def assert_refused(done, results, words):
    assert done.returncode != 0, done.stdout[-2000:]
    last = last_line(done)
    assert last.startswith("fairchem: "), done.stderr[-3000:]
    assert [word for word in words if word not in last] == [], last
    assert all((results / name).read_text() == "of an earlier run" for name in EARLIER)
    assert not (results / "best").exists()


@pytest.mark.parametrize("name", slow_but(CASES, CHEAP))
def test_an_input_is_refused_in_one_sentence(name, inputs, tmp_path, earlier):
    case, place = CASES[name], tmp_path / "inputs"
    shutil.copytree(inputs, place)
    typed = case.spoil(place)
    done = fairchem(place, tmp_path / "run", "--mode", case.mode, *typed)
    assert_refused(done, earlier, [word.replace("PLACE", str(place)) for word in case.words])


@pytest.mark.parametrize("name", slow_but(CONFIGS, ("config_empty",)))
def test_a_config_file_is_refused_in_one_sentence(name, tmp_path, earlier):
    content, words = CONFIGS[name]
    (tmp_path / "mine.yml").write_text(content)
    folder = [f"job.run_dir={tmp_path / 'run'}"] if "_self_]" in content else []
    done = commands.fairchem("-c", tmp_path / "mine.yml", *folder, cwd=ROOT)
    assert_refused(done, earlier, words)


def test_there_are_many_of_them():
    assert len(CASES) + len(CONFIGS) + len(OF_CONFIGS) >= 120 and len(CASES) + len(CONFIGS) >= 60


# ---- a run's folder -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_s_folder_with_a_truncated_checkpoint(inputs, trained, tmp_path):
    """Of each file in turn, in the only checkpoint: it is said, unless nothing of it is gone on from."""
    checkpoints = trained[0] / "gdeq" / "checkpoints"
    kept = [p for p in (checkpoints / "final").rglob("*") if p.is_file()]
    kept.append(checkpoints / "gdeq_settings.json")
    assert {".metadata", "gdeq_state.pt"} <= {path.name for path in kept}
    for number, file in enumerate(kept):
        run = tmp_path / str(number)
        shutil.copytree(trained[0] / "gdeq", run / "gdeq", symlinks=True)
        before = (run / "gdeq/results/test.json").read_bytes()
        for other in (run / "gdeq/checkpoints").glob("step_*"):
            shutil.rmtree(other)
        cut(run / "gdeq" / file.relative_to(trained[0] / "gdeq"))
        done = fairchem(inputs, run, "--mode", "train", "epochs=3")
        if file.name in ("inference_ckpt.pt", "resume.yaml"):
            assert done.returncode == 0, done.stderr[-3000:]
            continue
        assert done.returncode != 0, file.name
        assert last_line(done).startswith("fairchem: "), (file.name, done.stderr[-3000:])
        assert "checkpoint" in last_line(done)
        assert (run / "gdeq/results/test.json").read_bytes() == before


# ---- anything at all ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small database."""
    folder = tmp_path_factory.mktemp("whole")
    small.write_is2rs(folder, small.silicon(4))
    return (folder / "data.aselmdb").read_bytes()


def said_of(folder):
    """What is said of a data set; None where all of it can be read. Other errors are not expected."""
    try:
        rows = IS2RSDataset({"src": str(folder), "a2g_args": {"task_name": "si"}})
        for index in range(len(rows)):
            rows[index]
    except (ValueError, DamagedFile) as error:
        return str(error)
    return None


@settings(max_examples=40)
@given(place=st.floats(0, 1), byte=st.integers(0, 255), length=st.none() | st.floats(0, 1))
def test_a_damaged_database_opens_or_is_named(whole, tmp_path_factory, place, byte, length):
    """A byte that is another one anywhere, and an end that comes too early."""
    folder = tmp_path_factory.mktemp("damaged")
    damaged = bytearray(whole)
    damaged[min(int(place * len(damaged)), len(damaged) - 1)] = byte
    if length is not None:
        del damaged[int(length * len(damaged)) :]
    (folder / "data.aselmdb").write_bytes(damaged)
    said = said_of(folder)
    assert said is None or str(folder) in said


NUMBERS = st.floats() | st.integers(-(10**6), 10**6) | st.booleans()
SIMPLE = st.none() | NUMBERS | st.text("abc .-1é", max_size=5)
ANYTHING = (
    SIMPLE | st.lists(SIMPLE, max_size=7) | st.dictionaries(st.text("ab"), SIMPLE, max_size=2)
)


class OneRow:
    """A source of one row."""

    target_key = "pos_relaxed"

    def __init__(self, atoms):
        self.atoms = atoms

    def where(self, index):
        return "rows.aselmdb, row 1"

    def read(self, index):
        return self.atoms


WRONG = st.sampled_from(
    [np.nan, np.inf, -np.inf, 1e300, -1e300, 1e39, 1e7, 1e-300, 0.0, -1.0, 0.5, 1j]
)
SHAPES = {"pos_relaxed": (8, 3), "positions": (8, 3), "cell": (3, 3), "pbc": (3,)}
KEYS = ["pos_relaxed", "masses", "free", "positions", "numbers", "cell", "pbc", "sid"]


@st.composite
def arrays(draw, key):
    """Numbers in the shape that an entry has, or in another, right but for one place, of any kind."""
    shape = draw(st.just(SHAPES.get(key, (8,))) | st.sampled_from([(8, 3), (7,), (0,), ()]))
    size = int(np.prod(shape))
    usual = draw(st.sampled_from([np.zeros(size), np.ones(size), np.linspace(0, 7, size)]))
    array = usual.reshape(shape)
    if draw(st.booleans()) and size:
        wrong = draw(WRONG | NUMBERS)
        array = array.astype(np.result_type(array.dtype, type(wrong)))
        array.flat[draw(st.integers(0, size - 1))] = wrong
    kind = draw(st.none() | st.sampled_from([bool, np.float32, np.int64, str, object, complex]))
    with warnings.catch_warnings(), suppress(ValueError, OverflowError):
        warnings.simplefilter("ignore")
        array = array if kind is None else array.astype(kind)
    return draw(st.sampled_from([array, array.tolist()]))


ENTRIES = st.sampled_from(KEYS).flatmap(
    lambda key: st.tuples(st.just(key), ANYTHING | arrays(key) | arrays(key))
)


PLACES = st.lists(st.integers(-9, 9), max_size=3, unique=True)
DIRECTIONS = st.tuples(st.booleans(), st.booleans(), st.booleans())
CONSTRAINTS = st.one_of(
    st.builds(FixAtoms, PLACES),
    st.builds(FixCartesian, PLACES, DIRECTIONS),
    st.builds(FixScaled, PLACES, DIRECTIONS),
    st.just(FixedPlane([0], (0, 0, 1))),
    st.just(FixedLine([0], (0, 0, 1))),
    st.just(FixBondLengths([[0, 1]])),
    st.just(FixCom()),
)


def assert_usable(atoms, given):
    """What everything after the check relies on, of a row and of what was given to it."""
    n, single = len(atoms), np.finfo(np.float32).max
    target = np.asarray(atoms.info["pos_relaxed"])
    mass, free = masses(atoms), free_atoms(atoms)
    for array, shape in (
        (atoms.positions, (n, 3)),
        (target, (n, 3)),
        (atoms.cell.array, (3, 3)),
        (mass, (n,)),
    ):
        assert array.shape == shape and array.dtype.kind in "iuf"
        assert (np.abs(array.astype(float)) < single).all()
    assert (mass >= LIGHTEST).all() and (mass <= HEAVIEST).all()
    assert np.isfinite(mass.astype(np.float32) ** 2).all() and (mass.astype(np.float32) > 0).all()
    assert ((atoms.numbers >= 1) & (atoms.numbers <= 118)).all()
    assert free.shape == (n,) and free.dtype == bool and free.any()
    if "free" in given:
        assert all(each in (0, 1) for each in np.asarray(given["free"]).tolist())
    assert {type(each) for each in atoms.constraints} <= {FixAtoms}
    sid = atoms.info["sid"]
    assert (type(sid) is str and sid.strip() and sid.isprintable()) or (
        isinstance(sid, int | float | np.number) and not isinstance(sid, bool) and np.isfinite(sid)
    )


def meant(constraints, n):
    """Atoms that constraints hold in every direction; None if some hold an atom in another way."""
    held = set()
    for each in constraints:
        mask = getattr(each, "mask", np.ones(3, dtype=bool))
        if not isinstance(each, FixAtoms | FixCartesian | FixScaled) or len(set(mask.tolist())) > 1:
            return None
        held |= {int(i) % n for i in each.index} if mask.all() else set()
    return held


@settings(max_examples=400)
@given(
    entry=ENTRIES,
    place=st.integers(0, 5),
    constraints=st.just([]) | st.lists(CONSTRAINTS, max_size=2),
)
@example(("masses", [28.0] * 7 + [np.inf]), 0, [])
@example(("masses", [28.0] * 8), 0, [FixCartesian([1, 2])])
@example(("free", [0] + [1] * 7), 0, [])
@example(("sid", 'a\nb "c" =d'), 0, [])
def test_a_row_with_anything_in_it_is_used_or_named(entry, place, constraints):
    """A whole entry that is something else, or where it is an array of numbers, one of them."""
    key, value = entry
    (atoms,) = small.silicon(1)
    atoms.info |= {"sid": "one", "pos_relaxed": atoms.positions + 0.1}
    if key in ("pos_relaxed", "masses", "free", "sid"):
        atoms.info[key] = value
    elif isinstance(value, float | int):
        with suppress(ValueError, OverflowError):  # NumPy does not take it
            array = atoms.cell.array if key == "cell" else getattr(atoms, key)
            array.flat[place % array.size] = value
    elif key == "positions" and np.shape(value) == (8, 3):
        atoms.arrays["positions"] = np.asarray(value)
    atoms.set_constraint(constraints)
    given, held = dict(atoms.info), meant(constraints, len(atoms))
    said = None
    try:
        found = read_row(OneRow(atoms), 0)
    except BadRow as error:
        said = str(error)
    if said is None:
        assert_usable(found, given)
        assert held is not None and not free_atoms(found)[sorted(held)].any()
    else:
        assert said.startswith("rows.aselmdb, row 1") and said.isprintable()


@pytest.fixture(scope="module")
def config():
    return composed("si/gdeq.yml")


KEYS = sorted({key for key, *_ in places(OmegaConf.to_container(composed("si/gdeq.yml")))})


@given(key=st.sampled_from(KEYS), value=ANYTHING)
def test_a_config_with_any_value_of_any_key_is_checked_to_its_end(config, key, value):
    """Whatever is found is a sentence; which values are refused is known in ``test_config_rules``."""
    changed = OmegaConf.to_container(config)
    for found, holder, name in places(changed):
        if found == key:
            holder[name] = value
    for line in refusals(OmegaConf.create(changed)):
        assert "\n" not in line and len(line) > 20


def sections(stored, *above):
    """The way to each key of a plain config, those of sections too."""
    for name, value in stored.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from sections(value, *above, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["si/gdeq.yml", "si/relaxnet.yml"])
def test_a_config_without_any_of_its_keys_is_checked_to_its_end(name):
    """As one that somebody writes, or one that ``~key`` has taken something from."""
    whole = OmegaConf.to_container(composed(name))
    silent = []
    for *above, last in sections(whole):
        key = ".".join([*above, last])
        less = copy.deepcopy(whole)
        holder = reduce(dict.__getitem__, above, less)
        del holder[last]
        config = OmegaConf.create(less)
        OmegaConf.set_struct(config, True)
        lines = refusals(config) if "runner" in less else ["of nobody"]
        assert all(
            ("\n" not in line and len(line) > 20) or line == "of nobody" for line in lines
        ), key
        if not lines:
            silent.append(key)
            settings_of(config)
    assert "runner.train_eval_unit.model" not in silent and "job.run_dir" in silent
