"""The batches of an epoch: what is in them, and which of their points a process computes.

All of it is a function of (seed, epoch), so that a continued run sees the batches of the
uninterrupted one, and none of it of the number of processes, micro-batches or workers.
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
    """A data set that says itself what a batch of it holds."""

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        """Return the batches of one epoch, as indices."""

    def steps(self, *, batch_size: int) -> int:
        """Return how many there are."""


def batches_of(
    dataset: Dataset[Any], *, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> list[list[int]]:
    """Return the batches of one epoch, as indices; the last one may have fewer.

    Args:
        dataset: any with a length.
        batch_size: points in a batch, over all processes.
        seed: the run's seed.
        epoch: the epoch's number.
        shuffle: permute the points, or keep their order.
    """
    if shuffle and isinstance(dataset, Composed):
        return dataset.batches(batch_size=batch_size, seed=seed, epoch=epoch)
    n = len(cast(Sized, dataset))
    order: Sequence[int] = range(n)
    if shuffle:
        order = torch.randperm(n, generator=generator_of(seed, epoch)).tolist()
    return [list(order[first : first + batch_size]) for first in range(0, n, batch_size)]


def steps_of(dataset: Dataset[Any], *, batch_size: int) -> int:
    """Return how many batches an epoch of training has."""
    if isinstance(dataset, Composed):
        return dataset.steps(batch_size=batch_size)
    return math.ceil(len(cast(Sized, dataset)) / batch_size)


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """Return a generator that is a function of the pair; near pairs give unrelated streams."""
    digest = hashlib.sha256(f"{seed},{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rows_of(size: int, part: int, parts: int) -> range:
    """Return which places of a batch a part computes: every ``parts``-th, from its own number on.

    A part's i-th point keeps its place when a batch is shorter, as the last one of an epoch is:
    what an objective carries from batch to batch (free adversarial training) stays with its place.
    """
    return range(part, size, parts)


class Drawn(Dataset[Any]):
    """A data set whose random augmentation is a function of (seed, epoch, point).

    So it depends neither on who loads the point nor on what was loaded before, and the global
    generator is left alone.
    """

    def __init__(self, dataset: Dataset[Any], *, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Any:
        before = torch.get_rng_state()
        # Not torch.manual_seed, which would also reach for the GPUs, in a worker too.
        torch.default_generator.manual_seed(seed_of(self.seed, self.epoch, index))
        try:
            return self.dataset[index]
        finally:
            torch.set_rng_state(before)
