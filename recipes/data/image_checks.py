"""Look at every image file before training: broken files, sizes, and kinds of colour.

The check reads the header of a file and, where this is not enough to know that the file is whole
and its colours can be read, decodes it. A JPEG is whole if it ends with the marker of its end; a
PNG if the checksums of its parts fit. All other files are decoded.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

from robust_plugin.recipes.data.image_files import ImageFiles, LabelledFiles
from robust_plugin.recipes.data.pixels import GREY, read_image
from robust_plugin.recipes.runtime.progress import RunProgress
from robust_plugin.runtime.progress import reporting

_JPEG = ("JPEG", "MPO")  # MPO is a JPEG with more pictures in the same file
_END_OF_JPEG = b"\xff\xd9"
_DEPTH = 24  # place of the byte of a PNG that says how many bits a channel has
_ORIENTATION, _ON_ITS_SIDE = 0x0112, 5  # a tag of EXIF, and its first value that swaps the sides
# What becomes of images of each kind where images are read as RGB, and where as greyscale. In the
# place of {} it says what becomes of the alpha channel.
_BECOMES = {
    "RGB": ("", "converted to greyscale"),
    "RGB with alpha": ("{}", "{}; converted to greyscale"),
    "16-bit RGB": ("rounded down to 8 bits", "rounded down to 8 bits, converted to greyscale"),
    "palette": ("converted to RGB", "converted to greyscale"),
    "CMYK": ("converted to RGB", "converted to greyscale"),
    "greyscale": ("repeated as three equal channels", "kept at one channel"),
    "greyscale with alpha": (
        "{}; repeated as three equal channels",
        "{}; kept at one channel",
    ),
    "16-bit greyscale": (
        "divided by 65535 and rounded to 8 bits; repeated as three equal channels",
        "divided by 65535 and rounded to 8 bits; kept at one channel",
    ),
}
_OTHER = ("converted to RGB", "converted to greyscale")

_FIRST = 200  # files after which the time per file is known
_SLOW = 3e-4  # seconds per file from which on the time is mostly waiting, and threads help
_THREADS, _CHUNK = 16, 64
_LONG = 3.0  # seconds from which on progress is shown


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of an image file without its pixels.

    Attributes:
        kind: kind of its colours, a key of ``_BECOMES`` or a mode of Pillow.
        size: (height, width) in pixels, upright.
        bytes: size of the file.
        problem: a clause that names the file and says why it cannot be read; empty if it can.
    """

    kind: str = ""
    size: tuple[int, int] = (0, 0)
    bytes: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Checked:
    """What a check has found out about the images of a data set, which can all be read.

    Attributes:
        kinds: number of images by kind of colours.
        grey: whether all images are greyscale.
        content: digest of the sizes of all files, their labels and their order.
    """

    kinds: Counter[str]
    grey: bool
    content: str

    def describe(self, name: str, *, grey: bool, background: str) -> str:
        """Return a sentence that says what the images become; empty if all are plain RGB.

        Args:
            name: name of the data set.
            grey: whether images are read as greyscale, with one channel.
            background: colour behind transparent pixels.
        """
        said = []
        opaque = background == "refuse"
        clear = "opaque alpha channel dropped" if opaque else f"laid over {background}"
        for kind, count in self.kinds.most_common():
            becomes = _BECOMES.get(kind, _OTHER)[grey].format(clear)
            said.append(f"{count:,} {kind}" + (f" ({becomes})" if becomes else ""))
        if set(self.kinds) == {"RGB"} and not grey:
            return ""
        end = "; --data.colour rgb gives them three" if self.grey and grey else ""
        return f"images of {name}: {', '.join(said)}{end}"


def check_images(files: LabelledFiles, *, one_size: bool) -> Checked:
    """Check that all images of a data set can be read, and that they have one size.

    Args:
        files: the image files.
        one_size: whether all images must have the same size, since none is resized.

    Raises:
        ValueError: if files cannot be read or differ in size. The message names the first of them
            and says how many there are.
    """
    found = _look_at_all(files)
    _refuse_broken(files, found)
    if one_size:
        _refuse_sizes(files, found)
    digest, kinds = hashlib.sha256(), Counter[str]()
    for part, images in files.parts.items():
        for label, each in zip(images.targets, found[part], strict=True):
            digest.update(f"{part} {label} {each.bytes} {each.size};".encode())
            kinds[each.kind] += 1
    grey = all("greyscale" in kind for kind in kinds)
    return Checked(kinds, grey, digest.hexdigest()[:16])


def look(images: ImageFiles, index: int) -> Looked:
    """Look at one image file.

    Args:
        images: the files.
        index: index of the file.
    """
    from PIL import Image

    name = images.name_of(index)
    try:
        with images.open(index) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            with Image.open(file) as image:
                kind, size = _kind(image, file), image.size
                plain = kind in _BECOMES and not image.has_transparency_data
                if image.format in _JPEG and image.getexif().get(_ORIENTATION, 1) >= _ON_ITS_SIDE:
                    size = size[::-1]
                if not (plain and _is_whole(image, file)):
                    file.seek(0)
                    size = read_image(file, name, background=images.background).size
        return Looked(kind, (size[1], size[0]), length)
    except ValueError as error:  # of read_image, which names the file
        return Looked(problem=str(error).rstrip("."))
    except FileNotFoundError:
        return Looked(problem=f"{name} does not exist")
    # Pillow has no common class for its errors: broken files raise nearly any of them.
    except Exception as error:
        text = str(error) or type(error).__name__
        unknown = "cannot identify image file" in text
        return Looked(problem=f"{name} is {'no image file' if unknown else f'damaged ({text})'}")


def _kind(image: Any, file: BinaryIO) -> str:
    """Return the kind of colours of an image whose header has been read from a file."""
    deep = image.mode.startswith("I")
    if image.format == "PNG":
        file.seek(_DEPTH)
        deep = file.read(1) == b"\x10"
    colours = "RGB" if image.mode == "RGBA" else "palette" if image.mode == "P" else image.mode
    kind = "greyscale" if image.mode in GREY else colours
    if deep:
        return f"16-bit {kind}"
    return f"{kind} with alpha" if image.mode in ("RGBA", "LA", "La") else kind


def _is_whole(image: Any, file: BinaryIO) -> bool:
    """Return whether it is certain, without its pixels, that a file is whole and stands upright.

    Args:
        image: the image, whose header has been read.
        file: its file.

    Raises:
        Exception: an error of Pillow, if a checksum of a PNG does not fit.
    """
    if image.format in _JPEG:
        file.seek(-len(_END_OF_JPEG), os.SEEK_END)
        return file.read() == _END_OF_JPEG
    if image.format != "PNG":
        return False
    file.seek(0)
    turned = b"eXIf" in file.read()  # the orientation of a PNG may come after its pixels
    image.verify()
    return not turned


def _look_at_all(files: LabelledFiles) -> dict[str, list[Looked]]:
    """Look at all images of a data set.

    The files are read in one thread, or in several where each file takes long: threads overlap
    waiting for a network or a slow disk, but for small files on a fast disk, which take 30 to 80
    microseconds each, they only wait for one another.
    """
    places = [(images, index) for images in files.parts.values() for index in range(len(images))]
    began = time.monotonic()
    found = [look(*place) for place in places[:_FIRST]]
    each = (time.monotonic() - began) / max(1, len(found))
    rest = places[_FIRST:]
    long = each * len(rest) > _LONG
    what = f"checking the images of {files.name}"
    chunks = [rest[first : first + _CHUNK] for first in range(0, len(rest), _CHUNK)]
    with (
        ThreadPoolExecutor(_THREADS if each > _SLOW else 1) as pool,
        reporting(RunProgress({}) if long else False, what, total=len(rest), unit="images") as show,
    ):
        for looked in pool.map(lambda chunk: [look(*place) for place in chunk], chunks):
            found += looked
            show(len(found) - min(_FIRST, len(places)))
    parts = {}
    for part, images in files.parts.items():
        parts[part], found = found[: len(images)], found[len(images) :]
    return parts


def _refuse_broken(files: LabelledFiles, found: dict[str, list[Looked]]) -> None:
    """Raise a ValueError if images cannot be read."""
    problems = [each.problem for looked in found.values() for each in looked if each.problem]
    if problems:
        total = sum(map(len, found.values()))
        more = f", and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{len(problems):,} of {total:,} image files of {files.where} cannot be used: "
            f"{'; '.join(problems[:3])}{more}. Repair, replace or remove them."
        )


def _refuse_sizes(files: LabelledFiles, found: dict[str, list[Looked]]) -> None:
    """Raise a ValueError if images differ in size."""
    firsts: dict[tuple[int, int], str] = {}
    counts = Counter[tuple[int, int]]()
    for part, looked in found.items():
        for index, each in enumerate(looked):
            firsts.setdefault(each.size, files.parts[part].name_of(index))
            counts[each.size] += 1
    if len(counts) > 1:
        said = [
            f"{count:,} of {height} x {width}, such as {firsts[height, width]}"
            for (height, width), count in counts.most_common(3)
        ]
        side = min(min(size) for size in counts)
        raise ValueError(
            f"the images of {files.where} have {len(counts)} sizes (height x width): "
            f"{'; '.join(said)}. A network takes one size: give --data.image-size, such as "
            f"{side}, to which the shorter side of each image is resized before its centre is cut "
            "out as a square."
        )
