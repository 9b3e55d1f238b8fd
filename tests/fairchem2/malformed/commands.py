"""What is typed, and files of configs."""

from tests.fairchem2.malformed.spoiling import case, typed

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
typed(
    "section_as_a_word",
    "forces=none",
    words=("forces=none", "expected a section", "forces.KEY=VALUE"),
)
typed("paths_as_a_word", "paths=here", words=("paths=here", "expected a section"))
typed(
    "solver_path_unknown",
    "relaxer.solver._target_=no.Such",
    words=("solver", "'no.Such'", "expected"),
)
typed(
    "all_diverged",
    "alpha=1e39",
    "forces.src=none",
    "runner.train_eval_unit.is2rs.cap=null",
    words=("all", "diverged", "alpha"),
)


@case("job.run_dir", "is a file", "job.run_dir=FOLDER")
def run_folder_is_a_file(place):
    (place / "file").touch()
    return [f"job.run_dir={place}/file"]


# ---- files of configs -------------------------------------------------------------------------

OURS = "defaults: [/si/base@_global_, _self_]\n"
CONFIGS = {
    "config_empty": ("", ("no section runner", "defaults")),
    "config_of_text": ("Dear reader, this is no config.\n", ("no section runner", "defaults")),
    "config_of_a_list": ("- lr: 1.0e-3\n- epochs: 2\n", ("mine.yaml",)),
    "config_with_tabs": ("lr: 1.0e-3\njob:\n\tseed: 1\n", ("mine.yaml", "line 3", "\\t")),
    "config_cut_short": ("defaults: [/si/base@_global_, _se", ("mine.yaml", "line 1")),
    "config_with_a_key_twice": (OURS + "lr: 1\nlr: 2\n", ("mine.yaml", "duplicate key lr")),
    "config_without_runner": ("mode: train\nlr: 1.0e-3\n", ("no section runner", "defaults")),
    "config_of_unknown_defaults": ("defaults: [/si/bas@_global_, _self_]\n", ("si/bas",)),
    "config_without_values": (
        "defaults: [/shared/finetune@_global_, _self_]\njob: {run_dir: runs, run_name: a}\n",
        ("base", "epochs", "expected a value", "=VALUE"),
    ),
    "config_that_refers_to_nothing": (OURS + "lr: ${rate}\n", ("lr", "'rate' not found")),
    "config_with_a_word_for_a_number": (OURS + "lr: fast\n", ("lr=fast: expected a number",)),
    "config_of_an_unknown_runner": (
        OURS + "runner: {_target_: fairchem_gdeq.fairchem2.runner.Runner}\n",
        ("fairchem_gdeq.fairchem2.runner.Runner",),
    ),
}
