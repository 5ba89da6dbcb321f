"""Batches are a function of (seed, epoch), and parts of a batch are its every n-th point."""

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from robust_plugin.recipes.data.batches import (
    SeededAugmentation,
    batches_of,
    generator_of,
    rows_of,
    steps_of,
)

POINTS = TensorDataset(torch.arange(23))


def batches(seed: int, epoch: int, *, shuffle: bool = True) -> list[list[int]]:
    return batches_of(POINTS, batch_size=5, seed=seed, epoch=epoch, shuffle=shuffle)


def test_an_epoch_has_every_point_once() -> None:
    kept = batches(0, 0, shuffle=False)
    assert [number for batch in kept for number in batch] == list(range(23))
    mixed = batches(0, 0)
    assert sorted(number for batch in mixed for number in batch) == list(range(23))
    assert [len(batch) for batch in mixed] == [5, 5, 5, 5, 3]
    assert steps_of(POINTS, batch_size=5) == 5 and steps_of(POINTS, batch_size=23) == 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = batches(3, 4)
    torch.manual_seed(2)
    assert batches(3, 4) == first
    assert len({str(batches(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    draws = torch.stack([torch.rand(1000, generator=generator_of(0, e)) for e in range(4)])
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.15


def test_a_data_set_may_choose_its_batches_itself() -> None:
    class Backwards(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def batches(self, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
            return [[3, 2], [1, 0]]

        def steps(self, *, batch_size: int) -> int:
            return 7

    given = {"batch_size": 2, "seed": 0, "epoch": 0}
    assert batches_of(Backwards(), shuffle=True, **given) == [[3, 2], [1, 0]]
    assert batches_of(Backwards(), shuffle=False, **given) == [[0, 1], [2, 3]]
    assert steps_of(Backwards(), batch_size=2) == 7


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_a_batch_are_disjoint_and_keep_their_positions(parts: int) -> None:
    whole = [list(rows_of(6, part, parts)) for part in range(parts)]
    assert sorted(row for rows in whole for row in rows) == list(range(6))
    shorter = [list(rows_of(4, part, parts)) for part in range(parts)]
    assert all(short == rows[: len(short)] for short, rows in zip(shorter, whole, strict=True))


def test_augmentation_of_a_point_does_not_depend_on_other_points() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> float:
            return index + torch.rand(()).item()

    augmented = SeededAugmentation(Noisy(), seed=1, epoch=2)
    before = torch.get_rng_state()
    forwards = [augmented[index] for index in range(5)]
    assert [augmented[index] for index in reversed(range(5))] == forwards[::-1]
    assert torch.equal(torch.get_rng_state(), before) and len(augmented) == 5
    assert len({value % 1 for value in forwards}) == 5
    assert SeededAugmentation(Noisy(), seed=1, epoch=3)[0] != forwards[0]
