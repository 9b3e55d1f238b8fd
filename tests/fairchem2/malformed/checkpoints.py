"""Bases and checkpoints that are none, or others, or damaged."""

import shutil

import numpy as np
import torch

from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.malformed.spoiling import case, cut, forget, stored, typed


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


# ---- what is named by checkpoint= ------------------------------------------------------------


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
