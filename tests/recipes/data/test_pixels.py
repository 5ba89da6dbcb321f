"""Image files of every kind, against the arrays that they were written from."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.pixels import Background, Mode, read_image

Array = NDArray[Any]

_GENERATOR = np.random.default_rng(0)
GREY16 = _GENERATOR.integers(0, 65536, (6, 8)).astype(np.uint16)
GREY16[0, :4] = [0, 128, 129, 65535]
GREY8 = _GENERATOR.integers(0, 256, (6, 8)).astype(np.uint8)
RGB16 = _GENERATOR.integers(0, 65536, (6, 8, 3)).astype(np.uint16)
RGB8 = _GENERATOR.integers(0, 256, (6, 8, 3)).astype(np.uint8)
CMYK8 = _GENERATOR.integers(0, 256, (6, 8, 4)).astype(np.uint8)
PLACES = _GENERATOR.integers(0, 3, (6, 8)).astype(np.uint8)
PALETTE = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 7]], np.uint8)
HALF_LEVEL, LEVEL = 0.5 / 255 + 1e-7, 1 / 255 + 1e-7


def png16(values: Array, *, transparent: int | None = None) -> bytes:
    """A 16-bit PNG of greys or colours, written by hand; Pillow writes no colours of 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    height, width, *channels = values.shape
    kind = {(): 0, (3,): 2, (4,): 6}[tuple(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    clear = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + clear + body


def read(path: Path, mode: Mode = "RGB", background: Background = "refuse") -> Image.Image:
    with path.open("rb") as file:
        return read_image(file, str(path), mode=mode, background=background)


def pgm(values: Array, largest: int) -> bytes:
    return b"P5 8 6 %d\n" % largest + values.astype(">u2").tobytes()


def with_alpha(colours: Array, alpha: Array) -> Array:
    return np.concatenate([colours, alpha[..., None].astype(colours.dtype)], axis=-1)


def palette_image() -> Image.Image:
    image = Image.new("P", (8, 6))
    image.putdata(PLACES.ravel().tolist())
    image.putpalette(PALETTE.ravel().tolist())
    return image


def cmyk() -> Array:
    ink = CMYK8 / 255
    colours: Array = (1 - ink[..., :3]) * (1 - ink[..., 3:])
    return colours


OPAQUE = np.full((6, 8), 255)
# Name of the file, what writes it, its values in [0, 1], and how far from them bytes may be.
READ: list[tuple[str, Callable[[Path], object], Array, float]] = [
    ("grey16.png", lambda p: p.write_bytes(png16(GREY16)), GREY16 / 65535, HALF_LEVEL),
    ("grey16.tif", lambda p: Image.fromarray(GREY16).save(p), GREY16 / 65535, HALF_LEVEL),
    ("grey16.pgm", lambda p: p.write_bytes(pgm(GREY16, 65535)), GREY16 / 65535, HALF_LEVEL),
    ("grey10.pgm", lambda p: p.write_bytes(pgm(GREY16 % 1000, 999)), GREY16 % 1000 / 999, LEVEL),
    ("grey8.png", lambda p: Image.fromarray(GREY8).save(p), GREY8 / 255, 1e-7),
    ("bits.png", lambda p: Image.fromarray(PLACES > 0).save(p), PLACES > 0, 0),
    ("rgb16.png", lambda p: p.write_bytes(png16(RGB16)), RGB16 / 65535, LEVEL),
    ("rgb8.png", lambda p: Image.fromarray(RGB8).save(p), RGB8 / 255, 1e-7),
    ("palette.png", lambda p: palette_image().save(p), PALETTE[PLACES] / 255, 1e-7),
    (
        "palette-clear-unused.png",  # a transparent colour that no pixel has
        lambda p: palette_image().save(p, transparency=7),
        PALETTE[PLACES] / 255,
        1e-7,
    ),
    ("cmyk.tif", lambda p: Image.fromarray(CMYK8, "CMYK").save(p), cmyk(), LEVEL),
    (
        "rgba.png",
        lambda p: Image.fromarray(with_alpha(RGB8, OPAQUE)).save(p),
        RGB8 / 255,
        1e-7,
    ),
    (
        "grey-alpha.png",
        lambda p: Image.fromarray(with_alpha(GREY8[..., None], OPAQUE), "LA").save(p),
        GREY8 / 255,
        1e-7,
    ),
]


@pytest.mark.filterwarnings("ignore:.*'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize(("name", "write", "values", "within"), READ, ids=[r[0] for r in READ])
def test_an_image_file_gives_the_values_that_were_written(
    name: str, write: Callable[[Path], object], values: Array, within: float, tmp_path: Path
) -> None:
    write(tmp_path / name)
    found = read(tmp_path / name)
    assert found.mode == "RGB"
    expected = np.repeat(values[..., None], 3, axis=-1) if values.ndim == 2 else values
    assert np.abs(np.asarray(found) / 255 - expected).max() <= within


@pytest.mark.filterwarnings("ignore:.*'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize(("name", "write", "values", "within"), READ, ids=[r[0] for r in READ])
def test_an_image_file_in_one_channel(
    name: str, write: Callable[[Path], object], values: Array, within: float, tmp_path: Path
) -> None:
    write(tmp_path / name)
    found = read(tmp_path / name, mode="L")
    assert found.mode == "L"
    luma = values @ [0.299, 0.587, 0.114] if values.ndim == 3 else values  # ITU-R BT.601
    assert np.abs(np.asarray(found) / 255 - luma).max() <= within + (values.ndim == 3) * LEVEL


SEMI = np.where(PLACES > 0, 255, 128)
REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "rgba.png",
        lambda p: Image.fromarray(with_alpha(RGB8, SEMI)).save(p),
        "mode RGBA.*transparent pixels.*put the image on a background",
    ),
    (
        "grey-alpha.png",
        lambda p: Image.fromarray(with_alpha(GREY8[..., None], SEMI), "LA").save(p),
        "mode LA.*transparent",
    ),
    (
        "palette.png",
        lambda p: palette_image().save(p, transparency=1),
        "mode P.*transparent",
    ),
    (
        "grey16.png",
        lambda p: p.write_bytes(png16(GREY16, transparent=65535)),
        "mode I.*transparent",
    ),
    (
        "floats.tif",
        lambda p: Image.fromarray(np.float32(GREY8 / 255)).save(p),
        "TIFF, mode F.*range the file does not say; save it as 8-bit or 16-bit",
    ),
    (
        "ints.tif",
        lambda p: Image.fromarray(np.int32(GREY16)).save(p),
        "TIFF, mode I.*range the file does not say",
    ),
]


@pytest.mark.filterwarnings("ignore:.*'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize(("name", "write", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_an_image_whose_values_are_not_known_is_refused_by_name(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read(tmp_path / name)


@pytest.mark.parametrize(("background", "behind"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("grey", [False, True])
def test_transparent_pixels_are_laid_over_the_background(
    background: Background, behind: int, grey: bool, tmp_path: Path
) -> None:
    alpha = _GENERATOR.integers(0, 256, (6, 8))
    alpha[0, :2] = 0, 255
    colours = GREY8[..., None] if grey else RGB8
    Image.fromarray(with_alpha(colours, alpha)).save(tmp_path / "a.png")
    found = np.asarray(read(tmp_path / "a.png", background=background)) / 255
    share = alpha[..., None] / 255
    expected = share * colours / 255 + (1 - share) * behind / 255
    assert np.abs(found - expected).max() <= LEVEL
    palette_image().save(tmp_path / "p.png", transparency=1)
    found = np.asarray(read(tmp_path / "p.png", background=background))
    assert np.array_equal(found, np.where(PLACES[..., None] == 1, behind, PALETTE[PLACES]))


# EXIF: what turns the stored pixels upright.
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("deep", [False, True])
def test_an_image_stands_upright_as_its_exif_says(
    orientation: int, deep: bool, tmp_path: Path
) -> None:
    image = Image.fromarray(GREY16 if deep else RGB8)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    stored = np.repeat(np.round(GREY16 / 257)[..., None], 3, -1) if deep else RGB8
    found = np.asarray(read(tmp_path / "turned.png"))
    assert np.array_equal(found, UPRIGHT[orientation](stored))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_folder_of_16_bit_images_is_not_white(
    streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streamed:
        monkeypatch.setattr("robust_plugin.recipes.data.image_parts.LIMIT", 0)
    written: dict[str, list[Array]] = {"train": [], "test": []}
    for part, arrays in written.items():
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(4):
                arrays.append(_GENERATOR.integers(0, 65536, (6, 8)).astype(np.uint16))
                Image.fromarray(arrays[-1]).save(tmp_path / part / label / f"{number}.png")
    data = load_data("folder", folder=tmp_path, validation=0.25)
    expected = {np.round(a / 257).astype(np.uint8).tobytes() for a in written["test"]}
    found = set()
    for x, _ in (data.test[place] for place in range(len(data.test))):  # type: ignore[arg-type]
        assert x.shape == (1, 6, 8)
        found.add((255 * x[0]).round().byte().numpy().tobytes())
    assert found == expected


def test_a_transparent_image_in_a_folder_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(RGB8).save(tmp_path / part / label / f"{number}.png")
    clear = tmp_path / "test" / "b" / "3.png"
    Image.fromarray(with_alpha(RGB8, SEMI)).save(clear)
    with pytest.raises(ValueError, match=f"1 of 16 .*{clear}.*transparent pixels.*--data.backgro"):
        load_data("folder", folder=tmp_path, validation=0.25)
