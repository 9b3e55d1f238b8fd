"""A diagnosis from its sample to its page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from fairchem_gdeq.diagnose.advice import advise
from fairchem_gdeq.diagnose.conditions import conditions_of
from fairchem_gdeq.diagnose.examine import Finding, Probe, examine
from fairchem_gdeq.diagnose.page import command, write_diagnosis, write_numbers
from fairchem_gdeq.evaluation.scoring import EvaluatedModel, Scoring
from fairchem_gdeq.evaluation.task import labels_of
from fairchem_gdeq.page.write import attempt
from fairchem_gdeq.training.memory import peak_mb, reset_peak
from fairchem_gdeq.training.ranks import gather, rank, ranks


def diagnose(
    base: EvaluatedModel,
    scoring: Scoring,
    probe: Probe,
    lr: float,
    frames: bool,
    cost: Callable[[], Mapping[str, str]],
    folder: Path,
) -> None:
    """Examine a sample of a split, and write ``diagnose/diagnosis.json`` and ``report.html``.

    Args:
        base: the potential.
        scoring: the split.
        probe: how structures are examined, and how many.
        lr: the learning rate of the config.
        frames: whether there are labelled frames to train on.
        cost: what a training step costs, by what it is of.
        folder: of the results.

    Raises:
        ValueError: there is no structure, or none could be examined.
    """
    findings = _findings(base, scoring, probe)
    if not findings:
        raise ValueError(f"split {scoring.split.name}: no structure could be examined")
    conditions = conditions_of(findings)
    advice = advise(findings, conditions, base.is2rs.alpha, lr, frames)
    try:
        price = cost()
    except RuntimeError as error:  # such as memory that does not suffice, which is worth knowing
        price = {"one training step": f"failed: {str(error).splitlines()[0]}"}
    if rank() > 0:
        return
    title = f"Can tuning help? {len(findings)} structures of the split {scoring.split.name}"
    into, found = folder / "diagnose", (findings, conditions, advice, price)
    numbers = write_numbers(into, *found)
    for each in conditions:
        print(f"{each.name:18s} {each.verdict:14s} {each.share}. {each.detail}")
    for name, value in price.items():
        print(f"{name}: {value}")
    print(f"\n{advice.verdict}\nto begin with: {command(advice)}")
    print(f"results: {numbers}")
    attempt(lambda: write_diagnosis(into, title, *found))


def _findings(base: EvaluatedModel, scoring: Scoring, probe: Probe) -> list[Finding]:
    """Of all ranks, each structure once; one that cannot be examined is named and left out."""
    split, task = scoring.split, base.is2rs
    model = base.model.to(split.device).eval()
    share = -(-probe.structures // ranks())
    found: dict[int, Finding] = {}
    for row in tqdm(islice(split.rows(), share), total=min(share, split.count), desc="diagnose"):
        batch = row.to(split.device)
        (label,) = labels_of(batch)
        if "pos_relaxed" not in batch:
            raise ValueError(f"{label.sid}: a structure without a target cannot be diagnosed")
        operator = task.operator_of(scoring.field_of(model, batch), batch)
        ways = (batch.pos, batch.pos_relaxed)
        try:
            found[label.row] = examine(
                label, operator, *ways, task.relaxer, task.basin, probe, split.budget
            )
        except (RuntimeError, FloatingPointError) as error:
            logging.warning(f"{label.sid} (row {label.row}) could not be examined: {error}")
    every: list[Finding] = gather(list(found.values()))
    unique = {each.row: each for each in every}
    return sorted(unique.values(), key=lambda each: each.row)


def cost_of_step(step: Callable[[], int], model: torch.nn.Module) -> dict[str, str]:
    """Seconds and memory of one training step, and what it would move.

    Args:
        step: adds the gradient of one batch to the model's parameters; returns its structures.
        model: whose parameters learn; their gradients are taken away.
    """
    reset_peak()
    before, started = peak_mb(), time.perf_counter()
    count = step()
    seconds, peak = time.perf_counter() - started, peak_mb()
    parameters = list(model.parameters())
    moved = sum(int((p.grad != 0).sum()) for p in parameters if p.grad is not None)
    for parameter in parameters:
        parameter.grad = None
    return {
        "one training step": f"{seconds:.1f} s for {count} structures",
        "its peak memory": f"{peak:.0f} MB, {peak - before:.0f} MB of it for the step",
        "parameters that it moves": f"{moved} of {sum(p.numel() for p in parameters)}",
    }
