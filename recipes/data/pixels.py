"""Read image files as 8-bit RGB; files whose colours are ambiguous are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112  # a tag of EXIF
_BITS, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1  # two tags of TIFF, and a value of the second
# Modes of Pillow with more than 8 bits per channel; ``convert("RGB")`` would clip values at 255.
_DEEP = ("I;16", "I;16L", "I;16B", "I", "F")


def read_image(path: str) -> Image:
    """Read an image file as 8-bit RGB, turned upright as its EXIF orientation says.

    Greyscale becomes three equal channels. 16-bit greyscale is divided by 65535 and rounded to 8
    bits, since images are kept and augmented as bytes. For 16-bit colours Pillow takes the high
    byte. An alpha channel is dropped if it is opaque everywhere.

    Args:
        path: the image file.

    Raises:
        ValueError: for an image with transparent pixels, or with values whose range is unknown
            (floats, 32-bit integers, TIFF of 9 to 15 bits).
        OSError: if Pillow cannot read the file as an image.
    """
    from PIL import Image, ImageOps

    with open(path, "rb") as file, Image.open(file) as image:
        image.load()
        if image.has_transparency_data:
            found = _opaque(image, path)
        elif image.mode in _DEEP:
            found = Image.fromarray(_in_bytes(image, path))
        else:
            found = image
        found = found.convert("RGB")
        if (turn := image.getexif().get(_ORIENTATION, 1)) != 1:
            found.getexif()[_ORIENTATION] = turn
            found = ImageOps.exif_transpose(found)
        return found


def _opaque(image: Image, path: str) -> Image:
    """Return an image with an alpha channel as RGBA.

    Args:
        image: the image.
        path: path of its file, for the error message.

    Raises:
        ValueError: if a pixel is transparent.
    """
    # Pillow makes no alpha channel for 16-bit greyscale with a transparent grey.
    found = None if image.mode in _DEEP else image.convert("RGBA")
    if found is None or found.getchannel("A").getextrema() != (255, 255):
        raise ValueError(
            f"{path} (mode {image.mode}) has transparent pixels, whose colour depends on a "
            "background that the file does not name; put the image on a background and save it as "
            "RGB, or as greyscale."
        )
    return found


def _in_bytes(image: Image, path: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the pixels of a 16-bit greyscale image as bytes, shape [H, W].

    Args:
        image: the image.
        path: path of its file, for the error message.

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
            f"{path} ({image.format}, mode {image.mode}) holds values whose range the file does "
            "not say; save it as 8-bit or 16-bit greyscale, or as 8-bit RGB."
        )
    greys = np.asarray(image).astype(np.float64)
    return np.round(greys / 65535 * 255).astype(np.uint8)
