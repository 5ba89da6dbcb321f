"""The batches of an epoch, and which of their points each process computes.

The batches depend only on the seed and the epoch, so a continued run sees the same batches as a run
that was not interrupted. They do not depend on the number of processes, micro-batches or workers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence, Sized
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch.utils.data import Dataset

from robust_plugin.runtime.random import seed_of


@runtime_checkable
class Composed(Protocol):
    """A data set that chooses which points make up each of its batches."""

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        """Return the batches of one epoch, each as the list of the indices of its points.

        Args:
            batch_size: number of points per batch.
            seed: seed of the run.
            epoch: index of the epoch, from 0.
        """

    def steps(self, *, batch_size: int) -> int:
        """Return the number of batches in one epoch, for a number of points per batch."""


def batches_of(
    dataset: Dataset[Any], *, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> list[list[int]]:
    """Return the batches of one epoch, each as the list of the indices of its points.

    The last batch may have fewer points.

    Args:
        dataset: data set with a length.
        batch_size: number of points per batch, in all processes together.
        seed: seed of the run.
        epoch: index of the epoch, from 0.
        shuffle: put the points in a random order; otherwise they keep their order.
    """
    if shuffle and isinstance(dataset, Composed):
        return dataset.batches(batch_size=batch_size, seed=seed, epoch=epoch)
    n = len(cast(Sized, dataset))
    order: Sequence[int] = range(n)
    if shuffle:
        order = torch.randperm(n, generator=generator_of(seed, epoch)).tolist()
    return [list(order[first : first + batch_size]) for first in range(0, n, batch_size)]


def steps_of(dataset: Dataset[Any], *, batch_size: int) -> int:
    """Return the number of batches in one epoch of training.

    Args:
        dataset: data set with a length.
        batch_size: number of points per batch, in all processes together.
    """
    if isinstance(dataset, Composed):
        return dataset.steps(batch_size=batch_size)
    return math.ceil(len(cast(Sized, dataset)) / batch_size)


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """Return a generator on the CPU whose state depends only on the pair (seed, epoch).

    The pair is hashed, so that neighbouring pairs give unrelated random numbers.

    Args:
        seed: seed of the run.
        epoch: index of the epoch, from 0.
    """
    digest = hashlib.sha256(f"{seed},{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rows_of(size: int, part: int, parts: int) -> range:
    """Return the positions that a part has in a batch: part, part + parts, part + 2 parts, ...

    So the i-th point of a part has the same position in every batch, also in the shorter last batch
    of an epoch. Free adversarial training needs this: it keeps a perturbation per position.

    Args:
        size: number of points in the batch.
        part: index of the part, 0 to parts - 1.
        parts: number of parts that the batch is split into.
    """
    return range(part, size, parts)


class SeededAugmentation(Dataset[Any]):
    """Wraps a data set so that its random augmentation depends only on (seed, epoch, point).

    So the process that loads a point and the points loaded before have no influence. Loading a
    point does not change the state of torch's global generator.

    Args:
        dataset: data set that augments its points with torch's global generator.
        seed: seed of the run.
        epoch: index of the epoch, from 0.
    """

    def __init__(self, dataset: Dataset[Any], *, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Any:
        before = torch.get_rng_state()
        # Not torch.manual_seed: it would also seed the GPUs, and a worker must not use them.
        torch.default_generator.manual_seed(seed_of(self.seed, self.epoch, index))
        try:
            return self.dataset[index]
        finally:
            torch.set_rng_state(before)
