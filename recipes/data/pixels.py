"""Read image files as 8-bit RGB or greyscale; files whose colours are ambiguous are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Mode = Literal["RGB", "L"]
Background = Literal["refuse", "white", "black"]

_ORIENTATION = 0x0112  # a tag of EXIF
_BITS, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1  # two tags of TIFF, and a value of the second
# Modes of Pillow with more than 8 bits per channel; ``convert("RGB")`` would clip values at 255.
_DEEP = ("I;16", "I;16L", "I;16B", "I", "F")
GREY = ("1", "L", "LA", "La", *_DEEP)  # modes of Pillow with one channel of colour


def read_image(
    file: BinaryIO, name: str, *, mode: Mode = "RGB", background: Background = "refuse"
) -> Image:
    """Read an image file as 8-bit RGB or greyscale, turned upright as its EXIF orientation says.

    Palette images and CMYK become RGB by Pillow's conversion. 16-bit greyscale is divided by 65535
    and rounded to 8 bits, since images are kept and augmented as bytes. For 16-bit colours Pillow
    takes the high byte. An alpha channel that is opaque everywhere is dropped; pixels that are
    transparent are laid over the background.

    Args:
        file: the open image file.
        name: name of the file in error messages.
        mode: "RGB" for three channels, of which those of greyscale images are equal; "L" for one
            channel, to which colours are converted as 0.299 R + 0.587 G + 0.114 B.
        background: colour behind transparent pixels; "refuse" accepts no transparent pixels.

    Raises:
        ValueError: for an image with transparent pixels without a background, or with values whose
            range is unknown (floats, 32-bit integers, TIFF of 9 to 15 bits).
        OSError: if Pillow cannot read the file as an image.
    """
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        return in_bytes(image, name, mode=mode, background=background)


def in_bytes(
    image: Image, name: str, *, mode: Mode = "RGB", background: Background = "refuse"
) -> Image:
    """Return a loaded image as 8-bit RGB or greyscale, as ``read_image`` does.

    Args:
        image: the image.
        name: name of the image in error messages.
        mode: mode of the result.
        background: colour behind transparent pixels.

    Raises:
        ValueError: as ``read_image``.
    """
    from PIL import Image, ImageOps

    if image.has_transparency_data:
        found = _opaque(image, name, background)
    elif image.mode in _DEEP:
        found = Image.fromarray(_rounded(image, name))
    else:
        found = image
    found = found.convert(mode)
    if (turn := image.getexif().get(_ORIENTATION, 1)) != 1:
        found.getexif()[_ORIENTATION] = turn
        found = ImageOps.exif_transpose(found)
    return found


def _opaque(image: Image, name: str, background: Background) -> Image:
    """Return an image with an alpha channel without transparent pixels, in mode RGB or L.

    Args:
        image: the image.
        name: name of the image, for the error message.
        background: colour behind transparent pixels.

    Raises:
        ValueError: if a pixel is transparent and there is no background.
    """
    from PIL import Image

    # Pillow makes no alpha channel for 16-bit greyscale with a transparent grey.
    found = None if image.mode in _DEEP else image.convert("RGBA")
    if found is None or (
        background == "refuse" and found.getchannel("A").getextrema() != (255, 255)
    ):
        fix = "" if found is None else "give --data.background white or black, or "
        raise ValueError(
            f"{name} (mode {image.mode}) has transparent pixels, whose colour depends on a "
            f"background that the file does not name; {fix}put the image on a background and save "
            "it as RGB, or as greyscale."
        )
    behind = Image.new("RGBA", found.size, "black" if background == "refuse" else background)
    return Image.alpha_composite(behind, found).convert("L" if image.mode in GREY else "RGB")


def _rounded(image: Image, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the pixels of a 16-bit greyscale image as bytes, shape [H, W].

    Args:
        image: the image.
        name: name of the image, for the error message.

    Raises:
        ValueError: for images in any other format, because the range of their values is unknown.
    """
    tags = getattr(image, "tag_v2", {})
    whole = image.mode.startswith("I;16")
    if image.format == "TIFF":
        whole = whole and tags.get(_BITS) == (16,) and tags.get(_PHOTOMETRIC) == _BLACK_IS_ZERO
    else:  # some versions of Pillow read 16-bit PNG and PGM in mode I
        whole = whole or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not whole:
        raise ValueError(
            f"{name} ({image.format}, mode {image.mode}) holds values whose range the file does "
            "not say; save it as 8-bit or 16-bit greyscale, or as 8-bit RGB."
        )
    greys = np.asarray(image).astype(np.float64)
    return np.round(greys / 65535 * 255).astype(np.uint8)
