"""What each key of a config expects: a table, read by ``config_rules``.

Classes check their own settings too; here they are named by the keys that a user types, and all at once.
"""

from __future__ import annotations

from typing import Any

from fairchem_gdeq.relax.kept import memory_of
from fairchem_gdeq.training.frame_checks import NO_FORCES
from fairchem_gdeq.training.history import KEEP
from fairchem_gdeq.training.replay import BASE
from fairchem_gdeq.training.rules import (
    FULL,
    NAME,
    NOT_NEGATIVE,
    PART,
    POSITIVE,
    SECTION,
    SOURCE,
    TRUE,
    TRUTH,
    WORD,
    Rule,
    number,
    one_of,
    section_or,
    text,
    whole,
    words,
)


def _is_memory(value: Any) -> bool:
    """Whether ``relax.kept`` knows how much that is."""
    try:
        memory_of("guidance_memory", value)
    except ValueError:
        return False
    return True


def _is_task(value: Any) -> bool:
    """A section, or where one is, by reference."""
    return FULL.accepts(value) or (isinstance(value, str) and value.startswith("${"))


FRAMES = Rule(
    f"a folder of frames, a list of folders, {BASE}, {NO_FORCES} or null", SOURCE.or_null().accepts
)
HINT = Rule("text", lambda v: isinstance(v, str))
PATH = Rule("the path of a class or function", lambda v: WORD.accepts(v) and "." in v.strip("."))
TASKS = Rule(
    "a section of keys, or a list of them",
    lambda v: all(map(_is_task, v)) and bool(v) if isinstance(v, list) else FULL.accepts(v),
)
SEED = whole(0, 2**32 - 1)  # what NumPy takes
UNIT = "runner.train_eval_unit"
RULES: dict[str, Rule] = {
    "mode": one_of("train", "validate", "predict", "diagnose", "audit"),
    "dataset": WORD,
    "data": text("a folder"),
    "data_hint": HINT,
    "format": WORD,
    "paths.train": SOURCE,
    "paths.val": SOURCE,
    "paths.test": SOURCE,
    "test": WORD,
    "split": WORD,
    "test_target_key": WORD.or_null(),
    "checkpoint": text(f"the path of an inference checkpoint, {BASE}").or_null(),
    "baselines": words("names", "baselines=[ase_fire]"),
    "metrics": words("paths", "metrics=[mypackage.mymodule.WORST]"),
    "reference": section_or(text("a file with forces")).or_null(),
    "signal": WORD,
    "base": text("the path of an inference checkpoint"),
    "base_hint": HINT,
    "overrides": SECTION.or_null(),
    "train_parameters": words("patterns", 'train_parameters=["output_heads.*"]', 1).or_null(),
    "loss": section_or(WORD),
    "guidance_memory": Rule(
        "a size such as 4GB, a number of bytes, a share of a GPU's memory below 1, or null",
        _is_memory,
    ),
    "epochs": whole(1),
    "lr": POSITIVE,
    "ema_decay": number(0, 1, below=True).or_null(),
    "max_atoms": whole(2),
    "eval_max_atoms": whole(2),
    "num_workers": whole(0),
    "train_structures": PART,
    "val_structures": PART,
    "test_structures": PART,
    "horizon": whole(0),
    "alpha": POSITIVE,
    "alpha_lr": NOT_NEGATIVE,
    "alpha_decoder": whole(0),
    "proximal": NOT_NEGATIVE,
    "momentum": number(0, 1, below=True),
    "annealing": number(0, 1, above=True),
    "max_unroll": whole(1),
    "spare": NOT_NEGATIVE,
    "checkpoint_minutes": NOT_NEGATIVE,
    "keep": one_of(*KEEP),
    "most_diverged": number(0, 1),
    "warm_start": TRUTH,
    "compile": TRUTH,
    "trust_files": TRUTH,
    "forces.src": FRAMES,
    "forces.val": SOURCE.or_null(),
    "forces.max_atoms": whole(2).or_null(),
    "forces.lambda_forces": NOT_NEGATIVE.or_null(),
    "forces.limit": NOT_NEGATIVE.or_infinite().or_null(),
    "forces.updates": whole(0).or_null(),
    "forces.alone": number(0, 1).or_null(),
    "diagnose.structures": whole(1),
    "diagnose.starts": whole(0),
    "diagnose.shift": NOT_NEGATIVE,
    "audit.structures": whole(1),
    "audit.most_frames": whole(0),
    "audit.frames": SOURCE.or_null(),
    "audit.second": SOURCE.or_null(),
    "audit.nve.runs": whole(0),
    "audit.nve.steps": whole(1),
    "audit.nve.fs": POSITIVE,
    "audit.nve.kelvin": NOT_NEGATIVE,
    "relaxer.solver": section_or(WORD),
    "relaxer.horizon": whole(0),
    "relaxer.fmax": POSITIVE,
    "relaxer.max_steps": whole(0),
    "job.seed": SEED,
    "job.run_dir": Rule("a folder", NAME.accepts),
    "job.timestamp_id": NAME,
    "job.run_name": NAME,
    "job.device_type": one_of("CPU", "CUDA"),
    "job.deterministic": TRUTH,
    "job.scheduler.mode": one_of("LOCAL", "SLURM"),
    "job.scheduler.distributed_init_method": one_of("TCP", "FILE"),
    "job.scheduler.num_array_jobs": whole(1).or_digits(),
    "job.scheduler.slurm.mem_gb": whole(1).or_digits(),
    "job.scheduler.slurm.cpus_per_task": whole(1).or_digits(),
    "job.scheduler.slurm.partition": NAME.or_null(),
    "job.scheduler.slurm.qos": NAME.or_null(),
    "job.scheduler.slurm.account": NAME.or_null(),
    "job.scheduler.slurm.additional_parameters": SECTION.or_null(),
    "job.scheduler.ranks_per_node": whole(1).or_digits(),
    "job.scheduler.num_nodes": whole(1).or_digits(),
    "job.scheduler.slurm.timeout_hr": whole(1).or_digits(),  # sbatch takes no part of an hour
    f"{UNIT}.clip_grad_norm": POSITIVE.or_infinite().or_null(),
    f"{UNIT}.print_every": whole(1),
    f"{UNIT}.optimizer_fn.weight_decay": NOT_NEGATIVE,
    f"{UNIT}.cosine_lr_scheduler_fn.warmup_factor": number(0, 1),  # of lr, where it begins
    f"{UNIT}.cosine_lr_scheduler_fn.warmup_epochs": NOT_NEGATIVE,
    f"{UNIT}.cosine_lr_scheduler_fn.lr_min_factor": number(0, 1),  # of lr, where it ends
    f"{UNIT}.is2rs.cap": POSITIVE.or_null(),
    f"{UNIT}.is2rs.basin.delta_q": POSITIVE,
    f"{UNIT}.is2rs.basin.displacement": POSITIVE,
    f"{UNIT}.signal.lambda_guide": NOT_NEGATIVE,
    f"{UNIT}.signal.lambda_eq": NOT_NEGATIVE,
    f"{UNIT}.signal.fmax": POSITIVE,
    f"{UNIT}.signal.max_steps": whole(0),
    f"{UNIT}.signal.adjoint": section_or(WORD),
    f"{UNIT}.signal.adjoint.tol": number(0, 1, above=True, below=True),
    f"{UNIT}.signal.adjoint.max_vjps": whole(1),
    f"{UNIT}.signal.adjoint.damping": NOT_NEGATIVE,
}
# Keys of these ends and places, wherever they are; a value that refers to another key is that key's.
PATTERNS: dict[str, Rule] = {
    "*._target_": PATH,
    "*._partial_": TRUE,
    "*.hint": HINT,
    "*loader.*.splits.*.src": SOURCE,
    "*loader.*.format": WORD,
    "*loader.*.dataset_name": WORD,
    "*loader.*.target_key": WORD.or_null(),
    "*loader.*.skip_bad": TRUTH,
    "*loader.*.sampling.type": one_of("explicit", "balanced", "temperature", "weighted"),
    "*loader.*.ratios.*": NOT_NEGATIVE,
    "*loader.batch_sampler_fn.max_atoms": whole(2),
    "*loader.batch_sampler_fn.shuffle": TRUTH,
    "*loader.batch_sampler_fn.seed": SEED,
    "*loader.num_workers": whole(0),
    "*loader.collate_fn": FULL,
    "tasks": TASKS,
    f"{UNIT}.tasks": TASKS,
    "runner.callbacks.*.minutes": NOT_NEGATIVE,
    "runner.callbacks.*.max_saved_checkpoints": whole(1),  # 0 would keep all
}


def _same(place: str, *keys: str, of: str = "") -> dict[str, str]:
    """Keys of a place that are set by those of the same names, at the top or in the section ``of``."""
    return {f"{place}.{key}": f"{of}{key}" for key in keys}


# Where the runner is told what other keys say: set there, a value is none that those rules see.
TOLD: dict[str, str] = {
    **_same("tasks", "dataset", "trust_files"),
    **_same("runner", "mode", "split", "test", "checkpoint", "baselines", "reference", "metrics"),
    **_same("runner", "trust_files"),
    **_same("runner.diagnose", "structures", "starts", "shift", of="diagnose."),
    **_same("runner.audit", "structures", "frames", "most_frames", "second", of="audit."),
    **_same("runner.audit.nve", "runs", "steps", "fs", "kelvin", of="audit.nve."),
    **_same("runner.audit", "dataset"),
    **_same(UNIT, "alpha_lr", "proximal", "warm_start", "most_diverged", "keep", "ema_decay"),
    **_same(f"{UNIT}.model", "overrides", "trust_files"),
    **_same(f"{UNIT}.is2rs", "alpha"),
    **_same(f"{UNIT}.is2rs.descent", "momentum", "annealing"),
    **_same(f"{UNIT}.signal", "horizon", "loss", "spare", "max_unroll", "guidance_memory"),
    **_same(f"{UNIT}.signal", "solver", of="relaxer."),
    **_same(
        f"{UNIT}.forces",
        *("src", "max_atoms", "lambda_forces", "limit", "updates", "alone"),
        of="forces.",
    ),
    **_same(f"{UNIT}.forces", "dataset"),
    **_same(f"{UNIT}.optimizer_fn", "lr"),
    **_same(f"{UNIT}.cosine_lr_scheduler_fn", "epochs"),
    "tasks.path": "base",
    "runner.max_epochs": "epochs",
    "runner.held_frames.src": "forces.val",
    "runner.held_frames.dataset": "dataset",
    "runner.held_frames.max_atoms": "eval_max_atoms",
    f"{UNIT}.model.path": "base",
    f"{UNIT}.model.train": "train_parameters",
    f"{UNIT}.is2rs.descent.decoder": "alpha_decoder",
    f"{UNIT}.signal.name": "signal",
    f"{UNIT}.forces.seed": "job.seed",
    f"{UNIT}.compiled": "compile",
}
# RelaxNet's own keys, whose names may be others' in other configs.
RELAXNET = "fairchem_gdeq.relaxnet.runner.RelaxNetRunner"
RELAXNET_RULES: dict[str, Rule] = {
    "paths.val_frames": SOURCE.or_null(),
    "frames": whole(2),
    "evolution": one_of("explicit", "implicit"),
    "steps": whole(1),
    "duration": POSITIVE,
    "adjoint": TRUTH,
    **{
        f"weights.{term}": NOT_NEGATIVE
        for term in ("energy", "monotonic", "forces", "positions", "direction")
    },
    **{f"network.{key}": whole(1) for key in ("channels", "layers", "radial_count", "heads")},
    **{f"network.{key}": POSITIVE for key in ("cutoff", "triplet_cutoff", "neighbours")},
    "network.lmax": whole(0),
    "network.zonal_lmax": whole(0),
    "network.radial": words("kinds", "network.radial=[bessel]", 1),
    "is2rs.fmax": POSITIVE,
    "is2rs.basin.delta_q": POSITIVE,
    "is2rs.basin.displacement": POSITIVE,
    "runner.held_frames.is2rs": FULL,
    f"{UNIT}.model.pass_through_head_outputs": TRUE,
    f"{UNIT}.model.backbone.model": PATH,
    f"{UNIT}.model.heads.energy.module": PATH,
}
RELAXNET_TOLD: dict[str, str] = {
    **_same("is2rs.how", "frames", "steps", "adjoint"),
    **_same(
        f"{UNIT}.loss",
        *("energy", "monotonic", "forces", "positions", "direction"),
        of="weights.",
    ),
    **_same(
        f"{UNIT}.model.backbone",
        *("channels", "layers", "cutoff", "triplet_cutoff", "lmax", "zonal_lmax", "radial"),
        *("radial_count", "neighbours"),
        of="network.",
    ),
    **_same(f"{UNIT}.model.backbone", "duration", "evolution"),
    f"{UNIT}.model.heads.energy.heads": "network.heads",
    "runner.held_frames.frames_of": "paths.val_frames",
    "train_loader.dataset.dataset_configs.trajectories.frames": "frames",
    "val_loader.dataset.dataset_configs.is2rs.frames": "frames",
    "test_loader.dataset.dataset_configs.is2rs.frames": "frames",
}
LOADERS = tuple(f"runner.{split}_dataloader" for split in ("train", "eval", "test"))
# What a run cannot be without.
NEEDED = (*LOADERS, UNIT, f"{UNIT}.model")
# What is a section of keys, and neither null nor a word.
SECTIONS = (
    *("paths", "forces", "relaxer", "diagnose", "audit", "audit.nve", "collate"),
    *("job", "job.scheduler", "job.scheduler.slurm", "runner"),
    *("train_loader", "val_loader", "test_loader", "is2rs"),
    *LOADERS,
    *(UNIT, f"{UNIT}.model", f"{UNIT}.is2rs", f"{UNIT}.is2rs.basin", f"{UNIT}.is2rs.descent"),
    *(f"{UNIT}.is2rs.relaxer", f"{UNIT}.signal", f"{UNIT}.job_config"),
    *(f"{UNIT}.optimizer_fn", f"{UNIT}.cosine_lr_scheduler_fn"),
)
