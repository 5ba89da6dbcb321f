"""The loader of an epoch: order and augmentation depend on (seed, epoch, point) alone."""

from pathlib import Path

import torch
from small_images import first_batches, write_images
from torch.utils.data import TensorDataset

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.epoch_loader import loader

NUMBERS = TensorDataset(torch.arange(100))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int, workers: int = 0) -> list[int]:
        batches = loader(
            NUMBERS, batch_size=32, seed=seed, epoch=epoch, shuffle=True, workers=workers
        )
        once = torch.cat(first_batches(batches)).tolist()
        assert torch.cat(first_batches(batches)).tolist() == once  # iterated again
        return once

    torch.manual_seed(1)
    first = order(0, 0)
    assert sorted(first) == list(range(100))
    torch.manual_seed(2)
    assert order(0, 0) == first == order(0, 0, workers=2)
    others = [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(others)) == 16


def test_the_loader_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first_batches(loader(NUMBERS, batch_size=32, seed=0, epoch=0, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_shuffle_the_order_is_kept() -> None:
    batches = first_batches(loader(NUMBERS, batch_size=30, seed=0, epoch=3, shuffle=False))
    assert [len(batch) for batch in batches] == [30, 30, 30, 10]
    assert torch.cat(batches).tolist() == list(range(100))


def test_workers_augment_by_seed_and_epoch(tmp_path: Path, streamed: None) -> None:
    write_images(tmp_path)
    data = load_data("folder", folder=tmp_path, augmentation="crop+flip")

    def epoch(number: int) -> torch.Tensor:
        return torch.cat(
            first_batches(
                loader(data.train, batch_size=4, seed=0, epoch=number, shuffle=False, workers=2)
            )
        )

    torch.manual_seed(1)
    first = epoch(0)
    torch.manual_seed(2)
    assert torch.equal(epoch(0), first)
    assert not torch.equal(epoch(1), first)


def test_augmentation_is_a_function_of_the_point_whoever_loads_it(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = load_data("folder", folder=tmp_path, augmentation="crop+flip")

    def epoch(**how: int) -> torch.Tensor:
        batches = loader(data.train, batch_size=4, seed=0, epoch=1, shuffle=True, **how)
        return torch.cat(first_batches(batches))

    before = torch.random.get_rng_state()
    whole = epoch()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(epoch(workers=1), whole) and torch.equal(epoch(workers=3), whole)
    assert torch.equal(epoch(part=0, parts=2), whole[::2])
    assert torch.equal(epoch(part=1, parts=2), whole[1::2])
