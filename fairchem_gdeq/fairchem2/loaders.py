"""What bulk relaxation takes from fairchem 2's loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.datasets.mt_concat_dataset import ConcatDataset, create_concat_dataset
from fairchem.core.datasets.samplers.max_atom_distributed_sampler import (
    MaxAtomDistributedBatchSampler,
)
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from fairchem_gdeq.batching import rows
from fairchem_gdeq.data.is2rs import SourceDataset, collate


def open_split(dataset_configs: DictConfig, combined_dataset_config: DictConfig) -> ConcatDataset:
    """fairchem's ``create_concat_dataset``, where its ratios leave structures, and those that there are.

    The ``row`` of an item is unique over all of its data sets.

    Raises:
        ValueError: the ratio of a data set alone is no part of it, such as 64, meant as a number of
            structures; or no structure is left, on which fairchem's sampler would end without a word.
    """
    ratios = dict(combined_dataset_config["sampling"].get("ratios", {}))
    if len(ratios) == 1:  # of several, one may well be repeated
        [(name, ratio)] = ratios.items()
        split = name.rpartition(".")[2]
        if not 0 <= ratio <= 1:
            raise ValueError(
                f"{split}_structures={ratio}: expected the part of the split that is used, from 0 to 1"
            )
    for each in dataset_configs.values():
        _require_format(each.get("format"))
    dataset = create_concat_dataset(dataset_configs, combined_dataset_config)
    if len(dataset) == 0:
        sources = [split.src for each in dataset_configs.values() for split in each.splits.values()]
        raise ValueError(
            f"no structure is left of {', '.join(map(str, sources))} by the ratios {ratios} of its "
            f"{sum(dataset.real_sizes)} rows: raise train_structures, val_structures or test_structures"
        )
    first = 0
    for subset in dataset.datasets:
        each = subset.dataset
        if isinstance(each, SourceDataset):
            each.first_row = first
            first += len(each.source)
    return dataset


def _require_format(name: str) -> None:
    """
    Raises:
        ValueError: fairchem knows no data sets of that format.
    """
    try:
        registry.get_dataset_class(name)
    except Exception as error:  # fairchem's, and what importing a path raises
        raise ValueError(
            f"format={name}: expected is2rs, is2rs_lmdb, is2rs_trajectories, or another that is "
            "registered with fairchem"
        ) from error


class TrainingBatches(MaxAtomDistributedBatchSampler):
    """fairchem's batches, and words where a process would have none."""

    def _prepare_batches(self) -> list[list[int]]:
        """
        Raises:
            ValueError: no structure is within ``max_atoms``, or there are fewer batches than processes.
        """
        batches = [
            batch for batch in super()._prepare_batches() if batch
        ]  # fairchem may give an empty one
        if not batches:
            raise ValueError(
                f"max_atoms={self.max_atoms}: none of {len(self.dataset)} training structures has so few "
                "atoms: expected at least as many as one has. Raise max_atoms"
            )
        if len(batches) < self.num_replicas:
            raise ValueError(
                f"{len(self.dataset)} training structures make {len(batches)} batches of "
                f"max_atoms={self.max_atoms}, and {self.num_replicas} processes want one each: lower "
                "max_atoms or job.scheduler.ranks_per_node, or train on more structures"
            )
        return batches


class EvaluationBatches(MaxAtomDistributedBatchSampler):
    """fairchem's batches, and single structures where those are fewer than the processes.

    Evaluation packs structures anew (``max_atoms`` is the size of a pack), so batches only say who
    relaxes what.
    """

    def _prepare_batches(self) -> list[list[int]]:
        """
        Raises:
            ValueError: there are fewer structures than processes.
        """
        batches = super()._prepare_batches()
        if len(batches) >= self.num_replicas:
            return batches
        singles = [[row] for batch in batches for row in batch]
        if len(singles) < self.num_replicas:
            raise ValueError(
                f"{len(singles)} structures to evaluate are fewer than the {self.num_replicas} "
                "processes: lower job.scheduler.ranks_per_node, or use more of the split "
                "(val_structures, test_structures)"
            )
        return singles


def rows_of(loader: DataLoader) -> Iterator[AtomicData]:
    """The structures of a loader's batches as batches of one, in order."""
    return rows.rows_of(loader, collate)


def row_count(loader: DataLoader) -> int:
    """Structures that a loader gives this rank."""
    return sum(len(indices) for indices in loader.batch_sampler)


def left_out(sampler: Iterable[list[int]] | None) -> str | None:
    """Which structures fairchem's sampler gives to no rank because they exceed its batch; or None."""
    batches = getattr(sampler, "all_batches", None)
    if batches is None:
        return None
    rows = sampler.dataset
    missing = sorted(set(range(len(rows))) - {i for batch in batches for i in batch})
    if not missing:
        return None
    sizes = rows.get_metadata("natoms", missing)
    first = rows[missing[0]].sid
    return (
        f"{len(missing)} of {len(rows)} structures have more atoms than a batch may "
        f"({sampler.max_atoms}): up to {max(sizes)}; the first is "
        f"{first if isinstance(first, str) else first[0]}"
    )


def atom_budget(loader: DataLoader) -> int:
    """Atoms that the loader puts into one batch, and the stream into one pack.

    Raises:
        ValueError: the loader packs by something else.
    """
    budget = getattr(loader.batch_sampler, "max_atoms", None)
    if budget is None:
        raise ValueError(
            f"{type(loader.batch_sampler).__name__} has no max_atoms: give the loader fairchem's "
            "MaxAtomDistributedBatchSampler, whose max_atoms is also the size of evaluation packs"
        )
    return int(budget)
