"""Image files that are looked at before training, against Pillow's own decoding of each file."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_images import write_images

from robust_plugin.recipes.data import image_checks
from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.image_checks import check_images, look
from robust_plugin.recipes.data.image_files import ImageFiles, LabelledFiles

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 4)).astype(np.uint8)
RGB, ALPHA = PIXELS[..., :3], np.full((24, 40, 1), 255, np.uint8)
FORMATS = ("png", "jpg", "bmp", "tif", "webp", "ppm")


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    return buffer.getvalue()


def looked(path: Path) -> image_checks.Looked:
    return look(ImageFiles([path], [0]), 0)


def decodes(path: Path) -> bool:
    """Whether Pillow can decode the file, as training would."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File Read")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_is_refused_wherever_it_is_cut_off(suffix: str, tmp_path: Path) -> None:
    whole, path = encoded(suffix), tmp_path / f"a.{suffix}"
    path.write_bytes(whole)
    assert decodes(path) and not looked(path).problem and looked(path).size == (24, 40)
    assert looked(path).bytes == len(whole)
    for left in sorted({0, 1, 20, 60, len(whole) // 2, len(whole) * 9 // 10}):
        path.write_bytes(whole[:left])
        assert not decodes(path)
        assert str(path) in looked(path).problem, left


def test_a_changed_byte_in_a_png_is_found(tmp_path: Path) -> None:
    whole, path = bytearray(encoded("png")), tmp_path / "a.png"
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    assert "is damaged" in looked(path).problem


def test_what_is_no_image_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("nothing of an image")
    assert looked(tmp_path / "a.jpg").problem == f"{tmp_path / 'a.jpg'} is no image file"
    assert looked(tmp_path / "b.jpg").problem == f"{tmp_path / 'b.jpg'} does not exist"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    image, path = Image.fromarray(RGB), tmp_path / f"a.{suffix}"
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    files = ImageFiles([path], [0])
    assert look(files, 0).size == files[0][0].size[::-1]
    assert look(files, 0).size == ((24, 40) if orientation < 5 else (40, 24))


def test_a_jpeg_with_bytes_behind_its_end_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("jpg") + b"a phone's own data")
    assert decodes(path) and not looked(path).problem


def png16_rgb() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB * np.uint16(257))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 24, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


KINDS: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    "RGB": ("a.jpg", lambda p: p.write_bytes(encoded("jpg")), "1 RGB", "converted to greyscale"),
    "RGB with alpha": (
        "a.png",
        lambda p: Image.fromarray(np.concatenate([RGB, ALPHA], -1)).save(p),
        "opaque alpha channel dropped",
        "converted to greyscale",
    ),
    "16-bit RGB": (
        "a.png",
        lambda p: p.write_bytes(png16_rgb()),
        "rounded down to 8 bits",
        "converted to greyscale",
    ),
    "palette": (
        "a.gif",
        lambda p: Image.fromarray(RGB).quantize(8).save(p),
        "converted to RGB",
        "converted to greyscale",
    ),
    "CMYK": (
        "a.jpg",
        lambda p: Image.fromarray(RGB).convert("CMYK").save(p),
        "converted to RGB",
        "converted to greyscale",
    ),
    "greyscale": (
        "a.jpg",
        lambda p: Image.fromarray(RGB[..., 0]).save(p),
        "three equal channels",
        "one channel",
    ),
    "greyscale with alpha": (
        "a.png",
        lambda p: Image.fromarray(RGB[..., 0]).convert("LA").save(p),
        "opaque alpha channel dropped; repeated as three equal channels",
        "one channel",
    ),
    "16-bit greyscale": (
        "a.png",
        lambda p: Image.fromarray(RGB[..., 0] * np.uint16(257)).save(p),
        "divided by 65535.*three equal channels",
        "divided by 65535.*one channel",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_an_image_and_what_it_becomes(kind: str, tmp_path: Path) -> None:
    name, write, as_rgb, as_grey = KINDS[kind]
    write(tmp_path / name)
    files = ImageFiles([tmp_path / name], [0])
    checked = check_images(LabelledFiles("pets", tmp_path, ("a",), files, files), one_size=True)
    assert checked.kinds == {kind: 2} and checked.grey == ("greyscale" in kind)
    said = checked.describe("pets", grey=False, background="refuse")
    if kind == "RGB":
        assert said == ""  # nothing happens to plain RGB
    else:
        assert said.startswith(f"images of pets: 2 {kind} (")
        assert np.all([part in said for part in as_rgb.split(".*")])
    grey = checked.describe("pets", grey=True, background="refuse")
    assert np.all([part in grey for part in as_grey.split(".*")])
    assert ("--data.colour rgb gives them three" in grey) == checked.grey


@pytest.mark.parametrize("threads", [False, True])
def test_broken_files_of_all_parts_are_counted_and_named(
    threads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_checks, "_FIRST", 5)
    monkeypatch.setattr(image_checks, "_CHUNK", 3)
    monkeypatch.setattr(image_checks, "_SLOW", 0.0 if threads else 1e9)
    write_images(tmp_path, per_class=20)
    load_data("folder", folder=tmp_path)
    broken = [tmp_path / "train/cat/3.png", *(tmp_path / f"test/dog/{i}.png" for i in (1, 5, 17))]
    for path in broken:
        path.write_bytes(path.read_bytes()[:70])
    with pytest.raises(ValueError, match="4 of 80 image files of .*, and 1 more. Repair") as caught:
        load_data("folder", folder=tmp_path)
    assert str(broken[0]) in str(caught.value)
    assert sum(str(path) in str(caught.value) for path in broken) == 3


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_sizes_in_any_part_are_found(part: str, tmp_path: Path) -> None:
    write_images(tmp_path, per_class=4)
    Image.new("RGB", (30, 20)).save(tmp_path / part / "dog" / "2.png")
    with pytest.raises(ValueError, match=rf"1 of 20 x 30, such as .*{part}.dog.2.png.*such as 12"):
        load_data("folder", folder=tmp_path)
    assert load_data("folder", folder=tmp_path, image_size=12).shape == (3, 12, 12)


def test_sizes_that_differ_between_training_and_test_are_found(tmp_path: Path) -> None:
    write_images(tmp_path, per_class=4)
    for path in (tmp_path / "test").rglob("*.png"):
        Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(ValueError, match="8 of 12 x 12.*train.*; 8 of 16 x 16.*test"):
        load_data("folder", folder=tmp_path)


def test_the_digest_follows_files_and_labels(tmp_path: Path) -> None:
    write_images(tmp_path, per_class=4)
    first = load_data("folder", folder=tmp_path).content
    assert first == load_data("folder", folder=tmp_path, validation=0.5).content != ""
    (tmp_path / "train/cat/3.png").rename(tmp_path / "train/dog/9.png")
    moved = load_data("folder", folder=tmp_path).content
    Image.fromarray(RGB[:12, :12]).save(tmp_path / "test/cat/0.png")
    assert len({first, moved, load_data("folder", folder=tmp_path).content}) == 3
