"""Image folders, and CIFAR and SVHN from files written by hand in torchvision's formats."""

import hashlib
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from small_images import labels, points, write_images

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.train_val_test import Data


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


def test_image_size_brings_odd_images_to_one_shape(tmp_path: Path, either: None) -> None:
    write_images(tmp_path)
    Image.new("RGB", (20, 14)).save(tmp_path / "test" / "dog" / "0.png")
    expected = r"2 sizes .*31 of 12 x 12, such as .*png; 1 of 14 x 20, such as .*dog.0\.png"
    with pytest.raises(ValueError, match=f"{expected}.*--data.image-size"):
        load_data("folder", folder=tmp_path)
    data = load_data("folder", folder=tmp_path, image_size=10)
    assert {data.test[i][0].shape for i in range(16)} == {(3, 10, 10)} == {data.shape}


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
    with pytest.raises(ValueError, match=r"is not in .*, or damaged; expected .*--data.download"):
        load_data(name, folder=tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server at this machine that has CIFAR-10 with files and checksums of our own."""
    write_cifar(tmp_path, hundred=False)
    (tmp_path / "site").mkdir()
    archive = tmp_path / "site" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    handler = partial(QuietHandler, directory=str(tmp_path / "site"))
    kind = torchvision.datasets.CIFAR10
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/{archive.name}"
        monkeypatch.setattr(kind, "url", url)
        monkeypatch.setattr(kind, "tgz_md5", md5(archive))
        for attribute in ("train_list", "test_list"):
            found = [
                [name, md5(tmp_path / "cifar-10-batches-py" / name)]
                for name, _ in getattr(kind, attribute)
            ]
            monkeypatch.setattr(kind, attribute, found)
        meta = {**kind.meta, "md5": md5(tmp_path / "cifar-10-batches-py" / "batches.meta")}
        monkeypatch.setattr(kind, "meta", meta)
        yield url
        http.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.usefixtures("server")
def test_files_are_downloaded_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match=r"'cifar10': no folder .*new"):
        load_data("cifar10", folder=folder)
    data = load_data("cifar10", folder=folder, download=True)
    assert data.class_names == tuple(str(i) for i in range(10))  # what write_cifar calls them
    assert points(load_data("cifar10", folder=folder).test) == points(data.test)
    (folder / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(ValueError, match="CIFAR-10 is not in .*new, or damaged"):
        load_data("cifar10", folder=folder)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/absent.tar.gz")
    with pytest.raises(ValueError, match="CIFAR-10 cannot be downloaded to .*elsewhere: .*refused"):
        load_data("cifar10", folder=tmp_path / "elsewhere", download=True)


def test_classes_are_named_as_their_folders(tmp_path: Path) -> None:
    write_images(tmp_path, classes=("b", "a b", "C"), per_class=4)
    assert load_data("folder", folder=tmp_path).class_names == ("C", "a b", "b")


def test_files_that_are_passed_over_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, per_class=4)
    (tmp_path / "train/cat/.hidden").write_text("")
    assert load_data("folder", folder=tmp_path) and capsys.readouterr().err == ""
    for name in ("a.HEIC", "b.txt"):
        (tmp_path / "train/cat" / name).write_text("")
    load_data("folder", folder=tmp_path)
    said = capsys.readouterr().err
    assert (
        said.startswith(f"2 files in {tmp_path / 'train'} are not read, such as") and ".png" in said
    )


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
