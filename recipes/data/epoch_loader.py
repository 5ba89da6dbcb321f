"""The loader of one epoch, which reads and augments the points and puts them into batches."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from robust_plugin.recipes.data.batches import SeededAugmentation, batches_of, generator_of, rows_of
from robust_plugin.recipes.data.images import Batched, ResidentLoader


def loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    workers: int = 0,
    part: int = 0,
    parts: int = 1,
    device: torch.device | None = None,
) -> DataLoader[Any] | ResidentLoader:
    """Return the loader of one epoch, whose batches depend on (seed, epoch) alone.

    Make a new loader for every epoch: a continued run then sees the same batches as a run that was
    not interrupted. The augmentation of a point depends only on (seed, epoch, point). Loading does
    not change the state of torch's global generator.

    Args:
        dataset: data set with a length.
        batch_size: number of points per batch, in all parts together; the last batch may have
            fewer.
        seed: seed of the run.
        epoch: index of the epoch, from 0.
        shuffle: put the points in a random order, and augment them if the data set does so;
            otherwise they keep their order.
        workers: number of processes that load points; 0 loads them in this process. It has no
            effect for images that are kept in memory.
        part: index of the part of each batch to load, 0 to parts - 1 (see ``batches.rows_of``). If
            a batch has no points in this part, its last point is loaded.
        parts: number of parts that each batch is split into.
        device: device of the batches, None for the CPU. Images that are kept in memory are stored,
            augmented and put into batches there. Batches of other data sets are on the CPU, in
            pinned memory if the device is a GPU.

    Returns:
        DataLoader | ResidentLoader: an iterable of pairs (points, labels), one per batch.
    """
    batches = batches_of(dataset, batch_size=batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    rows = [rows_of(len(batch), part, parts) or range(len(batch))[-1:] for batch in batches]
    if isinstance(dataset, Batched):
        where = torch.device("cpu") if device is None else device
        return ResidentLoader(dataset, batches, rows, seed=seed, epoch=epoch, device=where)
    # A TensorDataset has no augmentation.
    random = shuffle and not isinstance(dataset, TensorDataset)
    return DataLoader(
        SeededAugmentation(dataset, seed=seed, epoch=epoch) if random else dataset,
        batch_sampler=[
            [batch[row] for row in mine] for batch, mine in zip(batches, rows, strict=True)
        ],
        num_workers=workers,
        generator=generator_of(seed, epoch),
        pin_memory=device is not None and device.type == "cuda",
    )
