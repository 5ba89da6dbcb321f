"""The loader of one epoch: it reads, augments and collects the batches."""

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
    """Make the loader of one epoch, whose batches depend on (seed, epoch) alone.

    Make a new loader for every epoch: a continued run then sees the same batches as a run that was
    not interrupted. The augmentation of a point depends only on (seed, epoch, point). The global
    generator does not change.

    Args:
        dataset: data set with a length.
        batch_size: number of points per batch, over all parts; the last batch may have fewer.
        seed: seed of the run.
        epoch: number of the epoch.
        shuffle: permute the points; otherwise they keep their order.
        workers: number of processes that load; 0 loads in this process. Images in memory need none.
        part: number of the part of each batch to load, 0 to parts - 1 (see ``rows_of``). If a batch
            has no points in this part, its last point is loaded.
        parts: number of parts that each batch is split into.
        device: device of the batches. Images in memory are kept, augmented and collected there.
            Batches of other data sets are on the CPU, in pinned memory if the device is a GPU. None
            for the CPU.
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
