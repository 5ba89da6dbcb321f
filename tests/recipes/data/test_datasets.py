import os
import pickle
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from robust_plugin.recipes.data.datasets import Data, load_data, loader
from robust_plugin.recipes.data.images import Resident, View


def points(dataset: Any) -> list[tuple[bytes, int]]:
    return [(x.numpy().tobytes(), int(y)) for x, y in (dataset[i] for i in range(len(dataset)))]


def labels(dataset: Any) -> Counter[int]:
    return Counter(int(dataset[i][1]) for i in range(len(dataset)))


def first_batches(data: Iterable[Any]) -> list[torch.Tensor]:
    return [batch[0] for batch in data]


# --- digits


def test_digits_are_all_points_once_in_three_stratified_parts() -> None:
    data = load_data("digits")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1197, 200, 400]
    bunch = load_digits()
    all_points = Counter(
        (np.float32(image / 16).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    parts = points(data.train) + points(data.validation) + points(data.test)
    assert Counter(parts) == all_points
    share = Counter(bunch.target.tolist())
    for part in (data.train, data.validation, data.test):
        for label, count in labels(part).items():
            assert (
                abs(count - share[label] * len(part) / 1797) < 2
            )  # two roundings, one after other


def test_digits_say_what_they_are() -> None:
    data = load_data("digits")
    x, y = data.train[0]
    assert (data.name, data.classes, data.shape) == ("digits", 10, (1, 8, 8))
    assert x.shape == data.shape and x.dtype == torch.float32 and y.dtype == torch.int64
    stacked = torch.stack([data.train[i][0] for i in range(len(data.train))])
    assert stacked.min() == 0 and stacked.max() == 1


def test_the_test_points_of_digits_depend_on_no_seed() -> None:
    torch.manual_seed(1)
    one = load_data("digits", seed=0)
    torch.manual_seed(2)
    other = load_data("digits", seed=1)
    assert points(one.test) == points(other.test)
    assert points(one.validation) != points(other.validation)
    assert points(load_data("digits", seed=1).validation) == points(other.validation)


# --- an image folder


def write_images(
    root: Path, *, classes: Iterable[str] = ("cat", "dog"), per_class: int = 8, size: int = 12
) -> None:
    """Images with a bright left half, no two alike."""
    value = 0
    for part in ("train", "test"):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = np.zeros((size, size, 3), np.uint8)
                pixels[:, : size // 2] = 130 + value
                value += 1
                Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image fits in memory."""
    monkeypatch.setattr("robust_plugin.recipes.data.datasets.LIMIT", 0)


@pytest.fixture(params=["in memory", "streamed"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "streamed":
        request.getfixturevalue("streamed")


def test_a_folder_is_split_and_read_lazily(tmp_path: Path, streamed: None) -> None:
    root = tmp_path / "my-pets"
    write_images(root)
    data = load_data("folder", folder=root, validation=0.25)
    assert (data.name, data.classes, data.shape) == ("my-pets", 2, (3, 12, 12))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 16]
    assert labels(data.validation) == {0: 2, 1: 2}
    assert len(set(points(data.train) + points(data.validation) + points(data.test))) == 32
    brightest = max(data.test[i][0].max() for i in range(16))
    assert brightest == np.float32(130 + 31) / np.float32(255)
    assert data.test[0][0].min() == 0
    # The first points are no single class, and always the same.
    assert {y for _, y in (data.test[i] for i in range(6))} == {0, 1}
    again = load_data("folder", folder=root, validation=0.25, seed=5)
    assert points(again.test) == points(data.test)
    (root / "test" / "dog" / "7.png").unlink()  # nothing was held in memory
    with pytest.raises(FileNotFoundError):
        points(data.test)


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


def test_image_size_brings_odd_images_to_one_shape(tmp_path: Path, either: None) -> None:
    write_images(tmp_path)
    Image.new("RGB", (20, 14)).save(tmp_path / "test" / "dog" / "0.png")
    with pytest.raises(ValueError, match=r"\(3, 14, 20\).*\(3, 12, 12\).*image_size"):
        points(load_data("folder", folder=tmp_path).test)
    with pytest.raises(ValueError, match=r"dog.0\.png has the shape"):
        points(load_data("folder", folder=tmp_path).test)
    data = load_data("folder", folder=tmp_path, image_size=10)
    assert {data.test[i][0].shape for i in range(16)} == {(3, 10, 10)} == {data.shape}


@pytest.mark.parametrize("damage", ["cut off", "no image"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, either: None, damage: str) -> None:
    write_images(tmp_path)
    file = tmp_path / "train" / "dog" / "3.png"
    file.write_bytes(file.read_bytes()[:60] if damage == "cut off" else b"nothing of an image")
    with pytest.raises(ValueError, match=r"dog.3\.png cannot be read"):
        points(load_data("folder", folder=tmp_path).train)


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


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*nowhere.*train/<class>/"):
        load_data("folder", folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'cifar10': give --data.folder"):
        load_data("cifar10")
    with pytest.raises(ValueError, match=r"train is no folder of classes.*train/<class>/"):
        load_data("folder", folder=tmp_path)
    write_images(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match="emu"):
        load_data("folder", folder=tmp_path)
    Image.new("RGB", (12, 12)).save(tmp_path / "train" / "emu" / "0.png")
    with pytest.raises(ValueError, match="differ in their classes.*emu"):
        load_data("folder", folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, "'mnist'; legal are digits, folder, cifar10, cifar100, svhn"),
        ({"name": "svhn", "augmentation": "rotate"}, "='rotate' of 'svhn'; legal: none, crop"),
        ({"name": "digits", "augmentation": "flip"}, "='flip' of 'digits'; legal: none$"),
        ({"name": "digits", "image_size": 32}, "image_size=32 with 'digits'"),
        ({"name": "digits", "validation": 0.0}, "validation=0.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(**arguments)


def test_real_cifar10_from_a_folder(tmp_path: Path) -> None:
    archive = os.environ.get("CIFAR10_JPEG")
    if archive is None:
        pytest.skip("CIFAR10_JPEG is not set")
    root = tmp_path / "CIFAR-10 (JPEG)"
    with tarfile.open(archive) as tar:
        few = [m for m in tar if m.isfile() and int(Path(m.name).stem) < 20]
        tar.extractall(root, members=few, filter="data")
    data = load_data("folder", folder=root, augmentation="crop+flip")
    assert (data.name, data.classes, data.shape) == ("CIFAR-10 (JPEG)", 10, (3, 32, 32))
    assert labels(data.train) == dict.fromkeys(range(10), 18)
    assert labels(data.validation) == dict.fromkeys(range(10), 2)
    assert labels(data.test) == dict.fromkeys(range(10), 20)
    x = torch.stack([data.test[i][0] for i in range(len(data.test))])
    assert 0 <= x.min() < 0.05 and 0.95 < x.max() <= 1


# --- torchvision's files, written by hand in their own formats


def left_bright(n: int, *, base: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images [n, 3, 32, 32] whose left half has the value base + index."""
    images = np.zeros((n, 3, 32, 32), np.uint8)
    images[..., :16] = (base + np.arange(n))[:, None, None, None]
    return images


def write_cifar(root: Path, *, hundred: bool) -> None:
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    key = "fine_labels" if hundred else "labels"
    classes = 100 if hundred else 10
    names = ["train"] if hundred else [f"data_batch_{i}" for i in range(1, 6)]
    per_file = 200 if hundred else 20
    for file, base in [*((name, 1) for name in names), ("test" if hundred else "test_batch", 40)]:
        images = np.minimum(left_bright(per_file, base=base), 255).reshape(per_file, -1)
        entry = {"data": images, key: [i % classes for i in range(per_file)]}
        (folder / file).write_bytes(pickle.dumps(entry))
    meta = {"fine_label_names" if hundred else "label_names": [str(i) for i in range(classes)]}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(meta))


def write_svhn(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for part, base in (("train", 1), ("test", 40)):
        images = left_bright(20, base=base).transpose(2, 3, 1, 0)
        y = np.array([[i % 10 or 10] for i in range(20)])  # the file calls the digit 0 class 10
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": images, "y": y})


@pytest.fixture
def accept_any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)


def bright_side_moves(data: Data) -> bool:
    """Whether the left bright half of a training image is ever seen on the right."""
    seen = [data.train[i][0][0] for _ in range(10) for i in range(len(data.train))]
    return any(x[:, 20:28].amax() > x[:, 4:12].amax() for x in seen)


@pytest.mark.usefixtures("accept_any_checksum")
def test_cifar10_is_cropped_and_flipped_in_training_only(tmp_path: Path) -> None:
    write_cifar(tmp_path, hundred=False)
    data = load_data("cifar10", folder=tmp_path)
    assert (data.name, data.classes, data.shape) == ("CIFAR-10", 10, (3, 32, 32))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [90, 10, 20]
    assert bright_side_moves(data)
    assert points(data.validation) == points(data.validation)


@pytest.mark.usefixtures("accept_any_checksum")
def test_cifar100_is_tested_on_its_own_test_points(tmp_path: Path) -> None:
    write_cifar(tmp_path, hundred=True)
    write_cifar(tmp_path, hundred=False)
    data = load_data("cifar100", folder=tmp_path, validation=0.5)
    assert (data.name, data.classes) == ("CIFAR-100", 100)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [100, 100, 200]
    assert set(labels(data.test)) == set(range(100))
    assert round(float(data.test[0][0].max()) * 255) == 40  # what only its test file has first


@pytest.mark.usefixtures("accept_any_checksum")
def test_svhn_is_cropped_but_never_flipped(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    data = load_data("svhn", folder=tmp_path, validation=0.5)
    assert (data.name, data.classes, data.shape) == ("SVHN", 10, (3, 32, 32))
    assert labels(data.test) == dict.fromkeys(range(10), 2)
    assert points(data.train) != points(data.train)
    assert not bright_side_moves(data)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_missing_files_are_not_fetched_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not in .*, or damaged"):
        load_data(name, folder=tmp_path)


# --- the loader

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


def test_the_digits_test_points_can_be_more(tmp_path: Path) -> None:
    data = load_data("digits", test=500)
    sizes = [len(part) for part in (data.train, data.validation, data.test)]  # type: ignore[arg-type]
    assert sizes == [1097, 200, 500]
    with pytest.raises(ValueError, match="test=500 with 'folder'"):
        load_data("folder", folder=tmp_path, test=500)
    with pytest.raises(ValueError, match="test=0"):
        load_data("digits", test=0)


# --- ImageNet's layout and transforms


def test_val_is_tested_on_where_there_is_no_test(tmp_path: Path) -> None:
    write_images(tmp_path, per_class=4)
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(load_data("folder", folder=tmp_path).test) == 8
    write_images(tmp_path / "both", per_class=4)
    (tmp_path / "val").rename(tmp_path / "both" / "val")
    (tmp_path / "both" / "val" / "cat" / "0.png").unlink()
    assert len(load_data("folder", folder=tmp_path / "both").test) == 8  # test, where there is one
    (tmp_path / "both" / "val" / "dog").rename(tmp_path / "both" / "val" / "emu")
    (tmp_path / "both" / "test").rename(tmp_path / "both" / "unused")
    with pytest.raises(ValueError, match="val differ in their classes.*dog, emu"):
        load_data("folder", folder=tmp_path / "both")


def test_resized_crops_train_and_centres_test(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):  # a ramp from left to right, wider than high
                ramp = np.tile(np.linspace(0, 255, 160).astype(np.uint8)[None, :, None], (80, 1, 3))
                Image.fromarray(ramp).save(tmp_path / part / name / f"{i}.png")
    data = load_data(
        "folder", folder=tmp_path, augmentation="resized-crop+flip", image_size=28, validation=0.5
    )
    assert data.shape == (3, 28, 28)
    for part in (data.validation, data.test):
        x = part[0][0]
        assert torch.equal(x, part[0][0])
        # 80 x 160 is resized to 32 x 64; the centre's 28 columns show 28/64 of the ramp.
        assert float(x[0, :, -1].mean() - x[0, :, 0].mean()) == pytest.approx(27 / 64, abs=0.02)
        assert float(x.mean()) == pytest.approx(0.5, abs=0.02)
    torch.manual_seed(0)
    images = [data.train[0][0] for _ in range(100)]
    widths = [float(x[0, :, -1].mean() - x[0, :, 0].mean()) for x in images]
    assert min(widths) < 0 < max(widths)  # flipped or not
    # 8 to 100 % of the area, but no higher than the image: at most 80 * 4/3 of 160 columns.
    assert min(map(abs, widths)) > 0.05 and max(map(abs, widths)) < 0.7
    assert np.std(np.abs(widths)) > 0.05
    default = load_data("folder", folder=tmp_path, augmentation="resized-crop+flip", validation=0.5)
    assert default.shape == (3, 224, 224)
    with pytest.raises(ValueError, match="of 'cifar10'; legal: none, crop, flip, crop.flip$"):
        load_data("cifar10", folder=tmp_path, augmentation="resized-crop+flip")


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
