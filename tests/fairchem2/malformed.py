"""Inputs that are malformed in one place each, and what the last line of the command has to say of them.

An entry gets a folder with the small inputs of these tests, spoils one of them, and returns what is typed
besides. What numbers and words of a config cannot mean is in ``test_config_rules``.
"""

import shutil
from typing import NamedTuple

import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from fairchem_gdeq.testing.fairchem2 import small


class Case(NamedTuple):
    """How one input is spoilt, in which mode it is used, and words of the last line."""

    spoil: object
    mode: str
    words: tuple


CASES = {}


def case(*words, mode="train"):
    """A function that spoils a folder, as a case of its name."""

    def known(spoil):
        CASES[spoil.__name__] = Case(spoil, mode, words)
        return spoil

    return known


def typed(name, *options, words, mode="train"):
    """A case in which nothing is wrong but what is typed; PLACE is the folder of inputs."""
    CASES[name] = Case(lambda place: [o.replace("PLACE", str(place)) for o in options], mode, words)


# ---- helpers: one part of the inputs, spoilt -----------------------------------------------------


def database(place, split="train"):
    return place / split / "data.aselmdb"


def cut(path, share=0.5):
    """A file that ends too early."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def rewrite(place, change, split="train"):
    """The rows of a split again; ``change`` has row 1, its atoms, its data and its forces."""
    path = database(place, split)
    with connect(path, type="aselmdb") as stored:
        rows = [(row.toatoms(), dict(row.data)) for row in stored.select()]
    path.unlink()
    (place / split / "data.aselmdb-lock").unlink(missing_ok=True)
    sizes = []
    with connect(path, type="aselmdb") as stored:
        for number, (atoms, data) in enumerate(rows):
            if number == 1:
                found = change(atoms, data)
                atoms = atoms if found is None else found  # one without atoms is false
            stored.write(atoms, data=data)
            sizes.append(len(atoms))
    np.savez(place / split / "metadata.npz", natoms=np.array(sizes))


def row(*words, split="train", mode="train"):
    """A case of a row: the function changes atoms in place, or returns others."""

    def known(change):
        def spoil(place):
            rewrite(place, change, split)
            return []

        spoil.__name__ = change.__name__
        return case("data.aselmdb", "row 2", "row1", *words, mode=mode)(spoil)

    return known


def unknown(*words, split="train"):
    """As ``row``, of an element that the model does not know: the data set has nothing against it."""

    def known(change):
        row(split=split)(change)
        made = CASES[change.__name__]
        words_of = (*words, "row1 (row 1)", "Fm (atomic number 100)", "up to 99 (Es)")
        CASES[change.__name__] = made._replace(words=words_of)
        return change

    return known


def labelled(*words, split="train_frames"):
    """A case of a frame: the function changes forces [n, 3] in place, or returns others."""

    def known(change):
        def relabel(atoms, data):
            forces = atoms.get_forces()
            found = change(forces)
            atoms.calc = None
            if found is not None:
                atoms.calc = SinglePointCalculator(atoms, energy=0.0)
                atoms.calc.results["forces"] = found
            return atoms

        def spoil(place):
            rewrite(place, relabel, split)
            return []

        spoil.__name__ = change.__name__
        return case(f"frames PLACE/{split}", *words)(spoil)

    return known


def stored(place, change, name="esen.pt"):
    """A checkpoint again, of which something has been changed."""
    found = torch.load(place / name, weights_only=False)
    torch.save(change(found) or found, place / name)
    return []


def metadata(place, split="train", **arrays):
    np.savez(place / split / "metadata.npz", **arrays)
    return []


def forget(place, name):
    target = place / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()


# ---- the base -------------------------------------------------------------------------------------


@case("base potential", "esen.pt: no such file", "base=PATH")
def base_missing(place):
    forget(place, "esen.pt")
    return []


@case("base potential", "expected a file", "a folder", "base=PATH")
def base_is_a_folder(place):
    forget(place, "esen.pt")
    (place / "esen.pt").mkdir()
    return []


@case("esen.pt", "expected a checkpoint", "empty")
def base_empty(place):
    (place / "esen.pt").write_bytes(b"")
    return []


@case("esen.pt", "expected a checkpoint")
def base_text(place):
    (place / "esen.pt").write_text("weights: 1 2 3\n" * 100)
    return []


@case("esen.pt", "expected a checkpoint", "cut short")
def base_truncated(place):
    cut(place / "esen.pt")
    return []


@case("esen.pt", "expected a checkpoint")
def base_noise(place):
    (place / "esen.pt").write_bytes(np.random.default_rng(0).bytes(4000))
    return []


@case("esen.pt", "expected a checkpoint", "zip")
def base_of_another_zip(place):
    np.savez(place / "other.npz", natoms=np.arange(3))
    shutil.move(place / "other.npz", place / "esen.pt")
    return []


@case("esen.pt", "expected an inference checkpoint", "dict")
def base_of_something_else(place):
    torch.save({"epoch": 3}, place / "esen.pt")
    return []


@case("esen.pt", "expected an inference checkpoint", "Tensor")
def base_is_a_tensor(place):
    torch.save(torch.zeros(3), place / "esen.pt")
    return []


@case("esen.pt", "expected a task of forces", "found energy")
def base_without_forces(place):
    energy = small.task_config("energy", "energy")
    return stored(place, lambda found: setattr(found, "tasks_config", [energy]))


@case("esen.pt", "data sets si, not for 'oc20'", "dataset=NAME")
def base_of_another_data_set(place):
    return ["dataset=oc20"]


def spoil_weight(value):
    def change(found):
        for weights in (found.ema_state_dict, found.model_state_dict):
            for name, tensor in weights.items():
                if name.endswith("output_heads.forces.linear.weight"):
                    tensor.view(-1)[0] = value

    return change


@case("esen.pt", "output_heads.forces.linear.weight", "NaN or infinity", "expected finite")
def base_with_nan_weights(place):
    return stored(place, spoil_weight(float("nan")))


@case("esen.pt", "output_heads.forces.linear.weight", "NaN or infinity", "expected finite")
def base_with_infinite_weights(place):
    return stored(place, spoil_weight(float("inf")))


@case("esen.pt", "weights", "backbone")
def base_with_weights_of_another_model(place):
    other = torch.load(place / "adapt.pt", weights_only=False)
    return stored(place, lambda f: setattr(f, "ema_state_dict", other.ema_state_dict))


@case("esen.pt", "model config")
def base_with_a_broken_config(place):
    return stored(place, lambda f: f.model_config["backbone"].update(no_such_option=3))


typed(
    "overrides_unknown", "overrides={backbone:{bloks:2}}", words=("overrides", "bloks", "esen.pt")
)
typed("parameters_unknown", "train_parameters=[bloks.*]", words=("train", "'bloks.*'", "There are"))


# ---- structures -----------------------------------------------------------------------------------

typed("data_missing", "paths.train=PLACE/nowhere", words=("PLACE/nowhere", "no such", "data=PATH"))
typed("data_missing_test", "test=nowhere", words=("PLACE/nowhere", "no such", "data=PATH"))
typed("data_format_unknown", "format=xyz", words=("format", "xyz", "is2rs"))
typed(
    "data_in_two_splits",
    "paths.val=PLACE/train",
    words=("PLACE/train", "train", "val", "paths.val"),
)
typed("data_tested_on_val", "test=val", words=("test=val", "split=val"))
typed("data_tested_on_train", "test=train", words=("test=train", "split=train"))
typed(
    "data_in_two_splits_by_another_way",
    "paths.test=PLACE/val/../train",
    words=("train", "test", "paths.test"),
)


@case("train", "expected", ".aselmdb", "empty")
def data_folder_empty(place):
    forget(place, "train")
    (place / "train").mkdir()
    return []


@case("train", "expected", ".aselmdb", "notes.txt")
def data_folder_of_something_else(place):
    forget(place, "train")
    (place / "train").mkdir()
    (place / "train" / "notes.txt").write_text("nothing here")
    return []


@case("data.aselmdb", "cut short", "bytes of", "again")
def data_truncated(place):
    cut(database(place))
    return []


@case("data.aselmdb", "not a readable LMDB", "expected")
def data_text(place):
    database(place).write_text("H 0 0 0\n" * 400)
    return []


@case("data.aselmdb", "not a readable LMDB", "expected")
def data_empty_file(place):
    database(place).write_bytes(b"")
    return []


@case("val/data.aselmdb", "cut short", "bytes of", "again")
def data_truncated_val(place):
    cut(database(place, "val"))
    return []


@case("train", "no rows")
def data_without_rows(place):
    database(place).unlink()
    with connect(database(place), type="aselmdb") as stored:
        del stored[stored.write(small.silicon(1)[0])]
    metadata(place, natoms=np.array([], dtype=int))
    return []


@case("train/metadata.npz", "natoms", "3", "8", "remove")
def metadata_of_another_length(place):
    return metadata(place, natoms=np.array([8, 8, 8]))


@case("train/metadata.npz", "natoms", "row 2", "remove")
def metadata_of_other_sizes(place):
    return metadata(place, natoms=np.full(8, 8))


@case("train/metadata.npz", "cannot be used", "remove")
def metadata_text(place):
    (place / "train" / "metadata.npz").write_text("natoms: 8")
    return []


@case("train/metadata.npz", "cannot be used", "remove")
def metadata_truncated(place):
    cut(place / "train" / "metadata.npz")
    return []


@row("no 'pos_relaxed'", "target_key")
def row_without_target(atoms, data):
    del data["pos_relaxed"]


@row("no 'pos_relaxed'", "target_key", split="test")
def row_without_target_in_test(atoms, data):
    del data["pos_relaxed"]


@row("shape (5, 3), expected (7, 3)", "same atoms")
def row_with_another_number_of_atoms(atoms, data):
    data["pos_relaxed"] = data["pos_relaxed"][:5]


@row("pos_relaxed", "numbers")
def row_with_a_target_of_words(atoms, data):
    data["pos_relaxed"] = "as the start"


@row("start positions", "NaN or infinity")
def row_with_nan_start(atoms, data):
    atoms.positions[0, 0] = np.nan


@row("start positions", "NaN or infinity")
def row_with_infinite_start(atoms, data):
    atoms.positions[0, 0] = np.inf


@row("pos_relaxed", "NaN or infinity")
def row_with_nan_target(atoms, data):
    data["pos_relaxed"][2, 1] = np.nan


@row("pos_relaxed", "NaN or infinity", split="val")
def row_with_infinite_target_in_val(atoms, data):
    data["pos_relaxed"][2, 1] = np.inf


@row("cell", "NaN or infinity")
def row_with_nan_cell(atoms, data):
    atoms.cell[0, 0] = np.nan


@row("cell", "volume of 0")
def row_with_zero_cell(atoms, data):
    atoms.cell[:] = 0


@row("all 7 atoms are fixed", "expected")
def row_all_fixed(atoms, data):
    data["free"] = np.zeros(len(atoms), dtype=bool)


@row("one atom", "expected")
def row_of_one_atom(atoms, data):
    data["pos_relaxed"] = data["pos_relaxed"][:1]
    return atoms[:1]


@row("no atoms")
def row_of_no_atoms(atoms, data):
    data["pos_relaxed"] = np.zeros((0, 3))
    return atoms[:0]


@row("free", "shape (3,), expected (7,)")
def row_with_too_few_free(atoms, data):
    data["free"] = np.ones(3, dtype=bool)


@row("masses")
def row_with_negative_masses(atoms, data):
    data["masses"] = -np.ones(len(atoms))


@unknown("split train")
def row_of_an_unknown_element(atoms, data):
    atoms.numbers[2] = 100


@unknown("split test", split="test")
def row_of_an_unknown_element_in_test(atoms, data):
    atoms.numbers[2] = 100


@row("atomic numbers from 0")
def row_of_no_element(atoms, data):
    atoms.numbers[2] = 0


@row("atoms 0 and 3", "same place", "start")
def row_with_atoms_at_one_place(atoms, data):
    atoms.positions[3] = atoms.positions[0]


@row("atoms 0 and 3", "same place", "pos_relaxed")
def row_with_target_atoms_at_one_place(atoms, data):
    data["pos_relaxed"][3] = data["pos_relaxed"][0]


@row("pos_relaxed", "Angstrom", "1e+06")
def row_with_a_target_far_away(atoms, data):
    data["pos_relaxed"][0] += 1e6


typed(
    "target_key_unknown",
    "test_target_key=relaxed",
    words=("no 'relaxed'", "test/data.aselmdb", "target_key"),
)
typed("target_key_null", "test_target_key=null", words=("test_target_key=null", "mode=train"))
typed(
    "batch_too_small", "eval_max_atoms=7", words=("split val", "(7)", "up to 8", "eval_max_atoms")
)
typed("no_training_batch", "max_atoms=5", words=("max_atoms",))


# ---- frames ---------------------------------------------------------------------------------------

typed("frames_missing", "forces.src=PLACE/none", words=("PLACE/none", "forces.src=none"))
typed("frames_missing_val", "forces.val=PLACE/none", words=("PLACE/none", "forces.val=null"))


@labelled("frame1", "no forces")
def frame_without_forces(forces):
    return None


@labelled("frame1", "not finite")
def frame_with_nan(forces):
    forces[0, 0] = np.nan
    return forces


@labelled("frame1", "not finite", split="val_frames")
def frame_with_nan_in_val(forces):
    forces[0, 0] = np.nan
    return forces


@labelled("frame1", "no forces", split="val_frames")
def frame_without_forces_in_val(forces):
    return None


@labelled("frame number 1", "cannot be read", "expected")
def frame_with_too_few_forces(forces):
    return forces[:4]


@labelled("frame1", "1e+06", "eV/Angstrom")
def frame_with_absurd_forces(forces):
    forces[0, 0] = 1e6
    return forces


@case("frames", "frame1", "Fm (atomic number 100)", "up to 99 (Es)")
def frame_of_an_unknown_element(place):
    def change(atoms, data):
        forces = atoms.get_forces()
        atoms.numbers[2] = 100
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
        return atoms

    rewrite(place, change, "train_frames")
    return []


@case("frames", "frame1", "Fm (atomic number 100)", "up to 99 (Es)")
def frame_of_an_unknown_element_in_val(place):
    def change(atoms, data):
        forces = atoms.get_forces()
        atoms.numbers[2] = 100
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
        return atoms

    rewrite(place, change, "val_frames")
    return []


@case("frames", "X_0 of row0 in split val", "leave these frames out")
def frames_of_val(place):
    small.write_frames(place / "more", small.silicon(3, 1))
    return [f"forces.src=[{place}/train_frames,{place}/more]"]


@case("train_frames", "expected", ".aselmdb")
def frames_folder_empty(place):
    forget(place, "train_frames")
    (place / "train_frames").mkdir()
    return []


@case("train_frames", "data.aselmdb", "cut short")
def frames_truncated(place):
    cut(database(place, "train_frames"))
    return []


@case("train_frames", "data.aselmdb", "not a readable LMDB")
def frames_text(place):
    database(place, "train_frames").write_text("no frames\n" * 1000)
    return []


@case("train_frames", "expected", "metadata.npz", "size 2")
def frames_metadata_of_another_length(place):
    return metadata(place, "train_frames", natoms=np.array([8, 8]))


# ---- the reference --------------------------------------------------------------------------------

typed("reference_missing", "reference=PLACE/no.extxyz", words=("PLACE/no.extxyz", "no such file"))


@case("reference", "dft.extxyz", "cannot be read", "expected")
def reference_text(place):
    (place / "dft.extxyz").write_text("forces are in the appendix\n")
    return [f"reference={place}/dft.extxyz"]


def reference_frames(place, count, change=lambda atoms: None):
    import ase.io

    images = small.silicon(3, 2)[:count]
    for number, atoms in enumerate(images):
        atoms.info["sid"] = f"row{number}"
        change(atoms)
        atoms.calc = SinglePointCalculator(atoms, forces=np.zeros((len(atoms), 3)))
    ase.io.write(place / "dft.extxyz", images)
    return [f"reference={place}/dft.extxyz"]


@case("dft.extxyz", "no structure row2", "row0, row1")
def reference_incomplete(place):
    return reference_frames(place, 2)


@case("dft.extxyz", "no structure row2", "row0, row1", mode="validate")
def reference_incomplete_when_validating(place):
    return reference_frames(place, 2)


@case("dft.extxyz", "row0 has other atoms")
def reference_of_other_atoms(place):
    return reference_frames(place, 3, lambda atoms: atoms.symbols.__setitem__(0, "C"))


@case("dft.extxyz", "frame 0 has no sid")
def reference_without_names(place):
    return reference_frames(place, 3, lambda atoms: atoms.info.clear())


typed(
    "reference_unknown",
    "reference={_target_: ase.calculators.none.None}",
    words=("reference", "ase.calculators.none"),
)
typed(
    "reference_of_another_kind", "reference={_target_: builtins.dict}", words=("reference", "dict")
)


# ---- modes, splits, checkpoints -------------------------------------------------------------------

typed("mode_unknown", "mode=fly", words=("unknown mode 'fly'", "validate"))
typed("split_unknown", "split=dev", words=("unknown split 'dev'", "val"), mode="validate")
typed("split_unknown_in_predict", "split=dev", words=("unknown split 'dev'",), mode="predict")
typed(
    "predict_untuned", words=("no tuned model", "checkpoint=base", "--mode train"), mode="predict"
)
typed("audit_untuned", words=("tuned model", "checkpoint=PATH"), mode="audit")
typed(
    "validate_without_targets",
    "test_target_key=null",
    words=("test_target_key=null", "predict"),
    mode="validate",
)
typed(
    "checkpoint_missing",
    "checkpoint=PLACE/none.pt",
    words=("checkpoint PLACE/none.pt", "no such file"),
    mode="predict",
)
typed(
    "checkpoint_missing_in_validate",
    "checkpoint=PLACE/none.pt",
    words=("checkpoint PLACE/none.pt", "no such file"),
    mode="validate",
)


@case("ckpt.pt", "expected a checkpoint", mode="predict")
def checkpoint_text(place):
    (place / "ckpt.pt").write_text("weights\n" * 30)
    return [f"checkpoint={place}/ckpt.pt"]


@case("ckpt.pt", "expected a checkpoint", "cut short", mode="validate")
def checkpoint_truncated(place):
    shutil.copy(place / "esen.pt", place / "ckpt.pt")
    cut(place / "ckpt.pt")
    return [f"checkpoint={place}/ckpt.pt"]


@case("ckpt.pt", "data sets oc20, not for 'si'", "expected a model", mode="predict")
def checkpoint_of_another_data_set(place):
    tasks = [small.task_config("forces", dataset="oc20")]
    small.write_checkpoint(place / "ckpt.pt", small.ESEN, tasks)
    return [f"checkpoint={place}/ckpt.pt"]


@case("ckpt.pt", "NaN or infinity", mode="predict")
def checkpoint_with_nan_weights(place):
    shutil.copy(place / "esen.pt", place / "ckpt.pt")
    stored(place, spoil_weight(float("nan")), "ckpt.pt")
    return [f"checkpoint={place}/ckpt.pt"]


@case("gdeq_state.pt", "expected a checkpoint", mode="validate")
def checkpoint_with_a_broken_step_beside_it(place):
    (place / "gdeq_state.pt").write_text("alpha: 0.1")
    return [f"checkpoint={place}/esen.pt"]


# ---- names and files of the command ---------------------------------------------------------------

typed("signal_unknown", "signal=gdeg", words=("signal", "'gdeg'", "truncated_bptt"))
typed("loss_unknown", "loss=mse", words=("loss", "'mse'", "log_delta_q"))
typed("solver_unknown", "relaxer.solver=newton", words=("solver", "'newton'", "lbfgs"))
typed(
    "adjoint_unknown",
    "runner.train_eval_unit.signal.adjoint=exact",
    words=("adjoint", "'exact'", "gmres"),
)
typed("metric_unknown", "metrics=[no.such.METRIC]", words=("metric 'no.such.METRIC'", "nothing"))
typed(
    "metric_of_another_kind", "metrics=[math.pi]", words=("metric 'math.pi'", "expected a Metric")
)
typed("baseline_unknown", "baselines=[ase_bfgs]", words=("baselines", "ase_bfgs", "ase_fire"))
typed("guidance_memory_unknown", "guidance_memory=lots", words=("guidance_memory", "lots", "4GB"))
typed("key_unknown", "horizn=3", words=("horizn",))
typed("key_unknown_inside", "forces.scr=none", words=("forces.scr",))
typed("section_as_a_word", "forces=none", words=("forces=none", "forces.src=none"))
typed("paths_as_a_word", "paths=here", words=("paths",))
typed("solver_path_unknown", "relaxer.solver._target_=no.Such", words=("no.Such",))
typed(
    "all_diverged",
    "alpha=1e30",
    "forces.src=none",
    "runner.train_eval_unit.is2rs.cap=null",
    words=("all", "diverged", "alpha"),
)


@case("job.run_dir", "is a file", "job.run_dir=FOLDER")
def run_folder_is_a_file(place):
    (place / "file").touch()
    return [f"job.run_dir={place}/file"]


# ---- files of configs -----------------------------------------------------------------------------

OURS = "defaults: [/si/base@_global_, _self_]\n"
CONFIGS = {
    "config_empty": ("", ("no section runner", "defaults")),
    "config_of_text": ("Dear reader, this is no config.\n", ("mine.yaml",)),
    "config_of_a_list": ("- lr: 1.0e-3\n- epochs: 2\n", ("mine.yaml",)),
    "config_with_tabs": ("lr: 1.0e-3\njob:\n\tseed: 1\n", ("mine.yaml", "line 3", "\\t")),
    "config_cut_short": ("defaults: [/si/base@_global_, _se", ("mine.yaml", "line 1")),
    "config_with_a_key_twice": (OURS + "lr: 1\nlr: 2\n", ("mine.yaml", "duplicate key lr")),
    "config_without_runner": ("mode: train\nlr: 1.0e-3\n", ("no section runner", "defaults")),
    "config_of_unknown_defaults": ("defaults: [/si/bas@_global_, _self_]\n", ("si/bas",)),
    "config_without_values": (
        "defaults: [/shared/finetune@_global_, _self_]\njob: {run_dir: runs, run_name: a}\n",
        ("base", "epochs", "expected a value", "base=VALUE"),
    ),
    "config_that_refers_to_nothing": (OURS + "lr: ${rate}\n", ("lr", "'rate' not found")),
    "config_with_a_word_for_a_number": (OURS + "lr: fast\n", ("lr=fast: expected a number",)),
    "config_of_an_unknown_runner": (
        OURS + "runner: {_target_: fairchem_gdeq.fairchem2.runner.Runner}\n",
        ("fairchem_gdeq.fairchem2.runner.Runner",),
    ),
}
