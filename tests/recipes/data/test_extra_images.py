"""Extra data: its files, its share of each batch, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from robust_plugin.recipes.data.batches import steps_of
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.data.extra_images import Mixed, with_extra
from robust_plugin.recipes.data.train_val_test import Data

N, EXTRA = 40, 24


@pytest.fixture
def data() -> Data:
    real = TensorDataset(torch.full((N, 3, 4, 6), 0.5), torch.arange(N) % 4)
    return Data("planted", real, real, real, 4, (3, 4, 6))


def images(n: int = EXTRA, *, first: bool = False) -> np.ndarray[Any, Any]:
    found = np.random.default_rng(0).integers(0, 256, (n, 4, 6, 3), np.uint8)
    found[:, 0, 0, 0] = np.arange(n)
    return found.transpose(0, 3, 1, 2) if first else found


def labels(n: int = EXTRA) -> np.ndarray[Any, Any]:
    return np.arange(n) % 4


def write(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return path


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a.npz", ("images", "labels")),
        ("a.npz", ("image", "label")),
        ("a.npz", ("data", "targets")),
        ("folder", ("images", "labels")),
    ],
)
def test_every_layout_gives_the_same_points(
    name: str, keys: tuple[str, str], first: bool, data: Data, tmp_path: Path
) -> None:
    path = write(tmp_path / name, **{keys[0]: images(first=first), keys[1]: labels()})
    mixed = with_extra(data, path, share=0.5, batch_size=8).train
    assert isinstance(mixed, Mixed) and len(mixed) == N + EXTRA
    expected = torch.from_numpy(images(first=True).copy()).float() / 255
    for i in range(EXTRA):
        x, y = mixed[N + i]
        assert torch.equal(x, expected[i]) and y == i % 4
    assert torch.equal(mixed[3][0], data.train[3][0])


@pytest.mark.parametrize(("batch", "share", "real"), [(8, 0.5, 4), (10, 0.3, 7), (16, 0.9, 2)])
def test_each_batch_has_its_share_and_an_epoch_shows_the_real_data_once(
    batch: int, share: float, real: int, data: Data, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.npz", images=images(), labels=labels())
    mixed = with_extra(data, path, share=share, batch_size=batch).train
    assert isinstance(mixed, Mixed)
    batches = mixed.batches(batch_size=batch, seed=1, epoch=0)
    assert len(batches) == steps_of(mixed, batch_size=batch) == -(-N // real)
    seen = [i for rows in batches for i in rows if i < N]
    assert sorted(seen) == list(range(N))
    for rows in batches[:-1]:
        assert len(rows) == batch and sum(i < N for i in rows) == real
    last = batches[-1]
    count = sum(i < N for i in last)
    assert len(last) - count == round(count * (batch - real) / real)
    # None of the extra points comes twice before all have come once.
    extra = [i for rows in batches for i in rows if i >= N]
    for first in range(0, len(extra) - EXTRA, EXTRA):
        assert len(set(extra[first : first + EXTRA])) == EXTRA


def test_batches_are_a_function_of_seed_and_epoch(data: Data, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", images=images(), labels=labels())
    mixed = with_extra(data, path, share=0.5, batch_size=8).train

    def epoch(seed: int, number: int, **more: int) -> list[list[float]]:
        batches = loader(mixed, batch_size=8, seed=seed, epoch=number, shuffle=True, **more)
        return [[float(x.sum()) for x in each] for each, _ in batches]

    torch.manual_seed(1)
    first = epoch(0, 0)
    torch.manual_seed(2)
    assert epoch(0, 0) == first == epoch(0, 0, workers=2)
    assert epoch(0, 1) != first != epoch(1, 0)
    halves = [epoch(0, 0, part=part, parts=2) for part in range(2)]
    for whole, a, b in zip(first, *halves, strict=True):
        assert (a, b) == (whole[::2], whole[1::2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": images()}, "keys images and none of labels, label, targets"),
        ({"labels": labels()}, "keys labels and none of images, image, data"),
        ({"images": images().astype(np.float32), "labels": labels()}, "dtype float32 and shape"),
        ({"images": images()[:, :3], "labels": labels()}, r"legal here: uint8, \[N, 4, 6, 3\] or"),
        ({"images": images()[0], "labels": labels()}, r"shape \(4, 6, 3\)"),
        ({"images": images(), "labels": labels()[:-1]}, "for 24 images; legal: one integer per"),
        ({"images": images(), "labels": labels().astype(float)}, "labels of dtype float64"),
        ({"images": images(), "labels": labels() + 1}, "labels from 1 to 4; legal: 0 to 3"),
        ({"images": images(), "labels": labels() - 1}, "labels from -1 to 2"),
        ({"images": images(0), "labels": labels(0)}, "at least one"),
    ],
)
def test_wrong_content_is_named(
    arrays: dict[str, Any], message: str, data: Data, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        with_extra(data, path, share=0.5, batch_size=8)
    assert str(path) in str(error.value)


def test_a_pickle_is_never_loaded(data: Data, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "a.npz", images=np.array([Bomb()], dtype=object), labels=labels(1))
    (tmp_path / "b.pickle").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 torn")
    np.save(tmp_path / "d.npy", images())
    (tmp_path / "e").mkdir()
    for name in ("a.npz", "b.pickle", "c.npz", "d.npy", "e", "absent.npz"):
        with pytest.raises(ValueError, match=f"{name}.*expected: an .npz with images"):
            with_extra(data, tmp_path / name, share=0.5, batch_size=8)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 0.01, 0.99])
def test_a_share_that_leaves_none_is_refused(share: float, data: Data, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", images=images(), labels=labels())
    with pytest.raises(ValueError, match=f"data.extra_share is {share} of batches of 8; legal"):
        with_extra(data, path, share=share, batch_size=8)


def test_a_run_with_extra_data_trains_on_it_and_is_another_run(
    tmp_path: Path, run_tiny: Callable[..., Any], words: Callable[..., list[str]]
) -> None:
    from robust_plugin.recipes.cli import main

    generator = np.random.default_rng(0)
    path = write(
        tmp_path / "a.npz",
        images=generator.integers(0, 256, (100, 8, 8, 3), np.uint8),
        labels=np.arange(100) % 4,
    )
    extra = (f"--data.extra={path}", "--data.augmentation=crop+flip")
    first = run_tiny("hydra", tmp_path / "out", *extra)
    assert run_tiny("hydra", tmp_path / "again", *extra)["log"] == first["log"]
    plain = run_tiny("hydra", tmp_path / "plain", "--data.augmentation=crop+flip")
    assert plain["log"][0]["loss"] != first["log"][0]["loss"]
    assert main(words("hydra", tmp_path / "plain", *extra)) == 2
