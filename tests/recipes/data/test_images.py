"""Images in memory or read from disk at each use, and their augmentation."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import points, write_images

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.data.images import (
    AUGMENTATIONS,
    InMemory,
    Resident,
    View,
    augmented,
    in_unit,
)


def test_images_in_memory_are_those_of_the_disk(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = load_data("folder", folder=tmp_path, validation=0.25, augmentation="crop+flip")
    assert isinstance(data.train, Resident) and isinstance(data.train.points, View)
    assert points(data.test) == points(data.test.points)
    (tmp_path / "test" / "dog" / "7.png").unlink()
    assert len(points(data.test)) == 16
    together = list(loader(data.test, batch_size=5, seed=0, epoch=0, shuffle=False))
    assert [len(y) for _, y in together] == [5, 5, 5, 1]
    x, y = (torch.cat(each) for each in zip(*together, strict=True))
    for i in range(16):
        assert torch.equal(x[i], data.test[i][0]) and y[i] == data.test[i][1]
    same, _ = data.train.batch(torch.zeros(50).long())
    assert len({image.numpy().tobytes() for image in same}) > 9  # each is augmented by itself


def test_an_image_that_changes_after_the_check_is_named(tmp_path: Path, either: None) -> None:
    write_images(tmp_path)
    data = load_data("folder", folder=tmp_path)
    file = tmp_path / "train" / "dog" / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"dog.3\.png cannot be read"):
        points(data.train)
    Image.new("RGB", (14, 20)).save(file)
    with pytest.raises(ValueError, match=r"dog.3\.png has the shape \(3, 20, 14\).*\(3, 12, 12\)"):
        points(data.train)


def test_floats_in_memory_stay_as_they_are_and_are_augmented() -> None:
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    plain, moved = InMemory(x, torch.arange(5)), InMemory(x, torch.arange(5), "crop")
    assert torch.equal(torch.stack([image for image, _ in plain]), x)  # type: ignore[misc,attr-defined]
    batches = loader(moved, batch_size=5, seed=0, epoch=0, shuffle=True)
    ((seen, y),) = batches
    assert sorted(y.tolist()) == list(range(5)) and not torch.equal(seen, x[y])
    byte = InMemory((255 * x).byte(), torch.arange(5))
    assert torch.equal(byte[3][0], (255 * x[3]).byte() / 255)


def test_only_training_points_are_augmented_and_only_by_the_global_generator(
    tmp_path: Path,
    either: None,
) -> None:
    write_images(tmp_path)
    data = load_data("folder", folder=tmp_path, augmentation="crop+flip", validation=0.25)
    for part in (data.validation, data.test):
        before = torch.random.get_rng_state()
        assert points(part) == points(part)
        assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(0)
    first = points(data.train)
    np.random.seed(7)
    assert points(data.train) != first
    torch.manual_seed(0)
    assert points(data.train) == first


def test_a_folder_is_not_augmented_unless_asked(tmp_path: Path, either: None) -> None:
    write_images(tmp_path)
    data = load_data("folder", folder=tmp_path)
    before = torch.random.get_rng_state()
    points(data.train)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_crop_moves_by_at_most_four_pixels(tmp_path: Path, either: None) -> None:
    write_images(tmp_path)
    data = load_data("folder", folder=tmp_path, augmentation="crop")
    edges = set()
    for _ in range(20):
        for i in range(len(data.train)):
            row = data.train[i][0][0].amax(0)  # bright columns of a bright left half of 6
            edges.add(int(row.nonzero().max()) + 1)
    assert edges == set(range(2, 11))


def test_bytes_become_multiples_of_1_255() -> None:
    found = in_unit(torch.arange(256, dtype=torch.uint8))
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_augmented_images_are_shifts_and_mirrors(augmentation: str) -> None:
    x = torch.rand(200, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (4,) * 4)
    seen: Counter[tuple[int, int, bool]] = Counter()
    for i, found in enumerate(augmented(x, augmentation)):
        for top, left, flip in product(range(9), range(9), (False, True)):
            shifted = padded[i, :, top : top + 6, left : left + 5]
            if torch.equal(found, shifted.flip(2) if flip else shifted) and shifted.any():
                seen[top, left, flip] += 1
    shifts, flips = {(t, w) for t, w, _ in seen}, {flip for *_, flip in seen}
    assert (len(shifts) > 60) if "crop" in augmentation else shifts == {(4, 4)}
    assert flips == ({False, True} if "flip" in augmentation else {False})
    assert sum(seen.values()) >= 200
