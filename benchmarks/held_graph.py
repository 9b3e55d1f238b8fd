"""Where relaxations end on a graph held from X_K on, against a fresh graph at every evaluation.

python benchmarks/held_graph.py                       # silicon validation split, shipped eSEN base
python benchmarks/held_graph.py --split test --horizon 40
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch
from fairchem.core.units.mlip_unit.utils import load_inference_model, load_tasks

from fairchem_gdeq.data.is2rs import IS2RSDataset
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import LBFGS, Operator, Structures, delta_q, solve
from fairchem_gdeq.relax.guidance import rollout

ROOT = Path(__file__).parents[1]


def compare(base: str, split: str, horizon: int, alpha: float, chunk: int = 15) -> torch.Tensor:
    """Rows [s, 3]: Delta Q of the held end and the fresh end to X_gt, and from one to the other."""
    model = hydra_model(load_inference_model(base, use_ema=True, return_checkpoint=False)).eval()
    rows = IS2RSDataset({"src": str(ROOT / "data/si" / split), "a2g_args": {"task_name": "si"}})
    task, out = IS2RS(alpha=alpha), []
    for first in range(0, len(rows), chunk):
        batch = atomicdata_list_to_batch(
            [rows[i] for i in range(first, min(first + chunk, len(rows)))]
        )
        operator = task.operator(model, load_tasks(base), batch)
        handoff = rollout(operator, batch.pos, horizon).positions

        def end(start: Operator, x: torch.Tensor = handoff) -> torch.Tensor:
            return solve(start, x, LBFGS(softest=None), fmax=0.02, max_steps=300).positions

        held, fresh = end(operator.freeze(handoff)), end(operator.unfreeze())
        structures: Structures = operator.structures
        out.append(
            torch.stack(
                [
                    delta_q(a, b, structures, operator.pin)
                    for a, b in (
                        (held, batch.pos_relaxed),
                        (fresh, batch.pos_relaxed),
                        (held, fresh),
                    )
                ],
                dim=1,
            )
        )
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "data/si/base/esen.pt"))
    parser.add_argument("--split", default="val")
    parser.add_argument("--horizon", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=0.05)
    arguments = parser.parse_args()
    with torch.no_grad():
        ends = compare(arguments.base, arguments.split, arguments.horizon, arguments.alpha)
    held, fresh, apart = ends.unbind(1)
    print(f"{len(ends)} structures, Delta Q to the target: held {held.mean():.2f}, ", end="")
    print(
        f"fresh {fresh.mean():.2f}; from one end to the other: median {apart.median():.2f}, ",
        end="",
    )
    print(f"largest {apart.max():.1f}, above 5 in {int((apart > 5).sum())}")


if __name__ == "__main__":
    main()
