"""Values that no key could mean, each with words of the sentence: what a reviewer typed."""

from tests.fairchem2.malformed.spoiling import case, typed

UNIT = "runner.train_eval_unit"
RATE = f"{UNIT}.cosine_lr_scheduler_fn"
TYPED = {  # names, what is typed, and what the last line says after its key and value
    "paths_null": ("paths.train=null", "a folder, or a list of folders"),
    "paths_number": ("paths.val=3", "a folder, or a list of folders"),
    "paths_none": ("paths.train=[]", "a folder, or a list of folders"),
    "forces_number": ("forces.src=3", "a folder of frames"),
    "forces_of_no_folder": ("forces.src=[]", "a folder of frames"),
    "seed_too_large": ("job.seed=5000000000", "a whole number from 0 to 4294967295"),
    "seed_negative": ("job.seed=-1", "a whole number from 0 to 4294967295"),
    "device_unknown": ("job.device_type=GPU", "one of CPU, CUDA"),
    "scheduler_unknown": ("job.scheduler.mode=FOO", "one of LOCAL, SLURM"),
    "deterministic_perhaps": ("job.deterministic=maybe", "true or false"),
    "run_folder_null": ("job.run_dir=null", "a folder"),
    "overrides_number": ("overrides=3", "a section of keys, or null"),
    "train_parameters_none": ("train_parameters=[]", "a list of patterns"),
    "train_parameters_word": ("train_parameters=output_heads.*", "a list of patterns"),
    "baselines_word": ("baselines=ase_fire", "a list of names, such as baselines=[ase_fire]"),
    "metrics_word": ("metrics=foo", "a list of paths"),
    "test_null": ("test=null", "a word"),
    "collate_null": ("collate=null", "a section of keys"),
    "solver_null": ("relaxer.solver=null", "a word, or a section of keys"),
    "adjoint_null": (f"{UNIT}.signal.adjoint=null", "a word, or a section of keys"),
    "solver_option_unknown": ("+relaxer.solver.foo=-1", "an option of fairchem_gdeq.relax.LBFGS"),
    "warmup_nan": (f"{RATE}.warmup_epochs=nan", "a number from 0 on"),
    "warmup_negative": (f"{RATE}.warmup_epochs=-1", "a number from 0 on"),
    "warmup_factor_nan": (f"{RATE}.warmup_factor=nan", "a number from 0 to 1"),
    "warmup_factor_negative": (f"{RATE}.warmup_factor=-0.1", "a number from 0 to 1"),
    "warmup_factor_above_one": (f"{RATE}.warmup_factor=2", "a number from 0 to 1"),
    "rate_uphill": (f"{RATE}.lr_min_factor=-5", "a number from 0 to 1"),
    "optimizer_with_a_closure": (
        f"{UNIT}.optimizer_fn._target_=torch.optim.LBFGS",
        "an optimizer whose step() needs no closure",
    ),
    "no_checkpoint_kept": (
        "runner.callbacks.0.max_saved_checkpoints=0",
        "a whole number from 1 on",
    ),
    "job_key_unknown": ("+job.foo=3", "what fairchem's section job can hold"),
}
for name, (option, expected) in TYPED.items():
    typed(name, option, words=(f"fairchem: {option.lstrip('+')}: expected {expected}",))
typed(
    "optimizer_option_senseless",
    f"+{UNIT}.optimizer_fn.betas=[2,3]",
    words=(f"{UNIT}.optimizer_fn: expected options", "betas=[2, 3]", "Invalid beta"),
)
typed(
    "checkpoint_number",
    "checkpoint=3",
    words=("checkpoint=3: expected the path of an inference checkpoint",),
    mode="validate",
)


@case(
    "expected a file", "found a folder", "checkpoint=PLACE/best/inference_ckpt.pt", mode="validate"
)
def checkpoint_is_a_folder(place):
    (place / "best").mkdir()
    (place / "esen.pt").rename(place / "best" / "inference_ckpt.pt")
    return [f"base={place}/best/inference_ckpt.pt", f"checkpoint={place}/best"]
