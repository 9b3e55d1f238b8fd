"""What a scored split leaves behind: its results file, the printed table, pictures and a page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.choice import choose
from fairchem_gdeq.evaluation.comparison import compare
from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.overlays import Overlay
from fairchem_gdeq.evaluation.pictures import plot_all
from fairchem_gdeq.evaluation.records import Record, to_rows
from fairchem_gdeq.evaluation.scoring import BASE, TUNED
from fairchem_gdeq.evaluation.table import print_table
from fairchem_gdeq.page.outcome import Outcome, write_report
from fairchem_gdeq.page.write import NAME, attempt, write_numbers
from fairchem_gdeq.training.history import History
from fairchem_gdeq.training.ranks import rank


def report(
    split: str,
    folder: Path,
    signal: str,
    basin: Basin,
    records: Mapping[str, list[Record]],
    overlays: Callable[[Collection[int]], list[Overlay]] | None,
    history: History,
    others: Mapping[str, Scores] | None = None,
    page: str = NAME,
) -> dict[str, Scores]:
    """Scores by row; on the first rank also the table, ``<split>.json``, pictures and a page.

    All ranks call it together.

    Args:
        split: its name.
        folder: of the files; it is made.
        signal: how the tuned model was trained, for the results file.
        basin: when a structure counts as captured.
        records: of each row of the table, by its title.
        overlays: as ``scoring.Compared``; None: the page shows no structures.
        history: of the training run; empty where there was none.
        others: scores of rows that are not of relaxed structures, such as force errors.
        page: its file.
    """
    scores = {
        title: summarise(found, basin) | (others or {}).get(title, {})
        for title, found in records.items()
    }
    comparison = None
    if BASE in records and TUNED in records:
        comparison = compare(records[BASE], records[TUNED], basin)
    if rank() == 0:
        stored = {
            "split": split,
            "signal": signal,
            "scores": scores,
            "records": {title: to_rows(found) for title, found in records.items()},
            "history": {"steps": history.steps, **history.state()},
            "best_epoch": history.best,
            "comparison": comparison and comparison.state(),
        }
        numbers = write_numbers(folder, f"{split}.json", stored)
        print_table(split, scores, history, basin, comparison)
    chosen = choose(records, basin) if overlays else {}
    seen = overlays(chosen) if overlays else []
    if rank() == 0:
        pictures = plot_all(folder, split, scores, records, history)
        print(f"\nresults: {numbers}")
        for picture in pictures:
            print(f"picture: {picture}")
        found = Outcome(split, signal, basin, scores, records, history, comparison, seen, chosen)
        attempt(lambda: write_report(folder, page, found))
    return scores
