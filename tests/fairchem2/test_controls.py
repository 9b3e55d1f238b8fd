"""The papers' controls as runs: one shot, and force training on frames alone."""

import json

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit

from fairchem_gdeq.fairchem2.base import build_model, load_base, load_tasks, open_inference
from fairchem_gdeq.relax.signals import Direct, FTStatic, make_signal
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.training.replay import ReplaySettings, for_signal
from tests.fairchem2.running import fairchem


def test_one_shot_from_training_to_scores(inputs, tmp_path):
    """Positions written out, X_0 + alpha times the head's output; nobody takes it for a potential."""
    options = (
        "epochs=1",
        "forces.src=none",
        "forces.max_atoms=null",
        "forces.val=null",
        "alpha=0.07",
    )
    code, out, err = fairchem(
        inputs, tmp_path, "--mode", "train", "lr=1e-3", *options, config="direct"
    )
    assert code == 0, err[-3000:]
    results = tmp_path / "direct" / "results"
    stored, path = (
        json.loads((results / "test.json").read_text()),
        str(results / "best" / "inference_ckpt.pt"),
    )
    tuned, base = (stored["records"][name] for name in ("tuned", "base"))
    assert all(r["evaluations"] == 1 and not r["converged"] for r in tuned)
    assert all(r["evaluations"] > 1 for r in base), "the base is relaxed as ever"

    model = build_model(path, open_inference(path)).eval()
    starts = small.silicon(3, 2)
    batch, rng = small.batch(starts, double=False), np.random.default_rng(1)
    with torch.no_grad():
        move = 0.07 * model(batch)["forces"]["forces"]
    for atoms, part, record in zip(starts, move.split(batch.natoms.tolist()), tuned, strict=True):
        error = part.numpy() - rng.normal(
            scale=0.05, size=atoms.positions.shape
        )  # the target's shift
        masses = atoms.get_masses()[:, None]
        error -= (masses * error).sum(0) / masses.sum()
        assert record["delta_q"] == pytest.approx(np.sqrt((masses * error**2).sum()), rel=1e-3)

    atoms = starts[0]
    atoms.calc = FAIRChemCalculator(load_predict_unit(path, device="cpu"), task_name="si")
    for asked in (atoms.get_forces, atoms.get_potential_energy):
        with pytest.raises(PropertyNotImplementedError):
            asked()
    for opened in (lambda: load_base(path), lambda: load_tasks(path, "si")):
        with pytest.raises(ValueError, match=r"found a model of displacements \(signal=direct\)"):
            opened()


@pytest.mark.slow
def test_frames_alone(inputs, tmp_path):
    code, out, err = fairchem(inputs, tmp_path, "--mode", "train", "epochs=1", config="ft_static")
    assert code == 0, err[-3000:]
    stored = json.loads((tmp_path / "ft_static" / "results" / "test.json").read_text())
    steps = stored["history"]["steps"]
    assert steps and all(step["train/signal_share"] == 0 for step in steps)
    assert all(
        "train/delta_q_guided" not in step and step["train/forces_loss"] > 0 for step in steps
    )
    assert stored["scores"]["tuned"]["force_mae"] != stored["scores"]["base"]["force_mae"]


def test_what_goes_beside_a_signal():
    frames, own = ReplaySettings("folder", updates=3), ReplaySettings("base")
    assert for_signal(FTStatic(), frames) == ReplaySettings("folder", updates=3, alone=1.0)
    for forces, said in ((None, "null or none"), (own, "base")):
        with pytest.raises(
            ValueError, match=f"signal=ft_static .*forces.src={said}: expected a folder"
        ):
            for_signal(FTStatic(), forces)
    assert for_signal(Direct(), None) is None
    with pytest.raises(ValueError, match=r"signal=direct .*Switch them off with forces\.src=none"):
        for_signal(Direct(), own)
    assert for_signal(make_signal("gdeq"), frames) is frames


@pytest.mark.slow
def test_a_decoded_step_is_resumed_and_scored_with(inputs, tmp_path):
    learnt = ("alpha_decoder=4", "alpha_lr=0.05", "momentum=0.1", "--mode", "train")
    code, out, err = fairchem(inputs, tmp_path, *learnt, "epochs=1")
    assert code == 0, err[-3000:]
    folder = tmp_path / "gdeq"
    first = torch.load(folder / "results/best/gdeq_state.pt", weights_only=True)["decoder"]
    assert first["out.weight"].abs().max() > 0, "it has learnt"
    before = json.loads((folder / "results/test.json").read_text())["scores"]
    # The file says what was learnt, whatever the config: alpha alone would end elsewhere.
    for options in ((), ("alpha_decoder=0",)):
        code, out, err = fairchem(inputs, tmp_path, "momentum=0.1", *options, "--mode", "validate")
        assert code == 0, err[-3000:]
        again = json.loads((folder / "results/validate/test.json").read_text())["scores"]
        for row in ("base", "tuned"):
            assert again[row]["delta_q_mean"] == pytest.approx(
                before[row]["delta_q_mean"], rel=1e-5
            )
    state = folder / "results/best/gdeq_state.pt"
    stored = torch.load(state, weights_only=True)
    torch.save(stored | {"decoder": None}, state)
    code, out, err = fairchem(inputs, tmp_path, "momentum=0.1", "--mode", "validate")
    assert code == 0, err[-3000:]
    plain = json.loads((folder / "results/validate/test.json").read_text())["scores"]
    assert plain["tuned"]["delta_q_mean"] != pytest.approx(
        before["tuned"]["delta_q_mean"], rel=1e-4
    )
    code, out, err = fairchem(inputs, tmp_path, *learnt, "epochs=2")
    assert code == 0, err[-3000:]
    steps = json.loads((folder / "results/test.json").read_text())["history"]["steps"]
    assert len(steps) > 1 and [s["train/step"] for s in steps] == list(range(len(steps)))
    last = torch.load(folder / "results/best/gdeq_state.pt", weights_only=True)
    second = last["decoder"]["out.weight"]
    assert not torch.equal(second, first["out.weight"])
    taken = {int(each["step"]) for each in last["alpha_optimizer"]["state"].values()}
    assert taken == {len(steps)}, "its optimizer went on"
