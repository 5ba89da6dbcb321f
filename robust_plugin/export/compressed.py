"""Compressed checkpoints: the non-zeros of each tensor and their places, exact to the bit.

A tensor of N entries with K non-zeros of b bytes each is stored in the smallest of these encodings:

- ``dense``: all N entries; N b bytes;
- ``bitmask``: one bit per entry, and the values; N / 8 + K b bytes;
- ``gaps8``, ``gaps16``: the number of zeros before each non-zero (the gap) in one or two bytes, and
  the values; K + K b or 2 K + K b bytes and a little more. L is the largest number of the gap's
  type. A gap of L or more is written as L once for each time that L fits into it, then the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.masks.detach import dense_state_dict
from robust_plugin.runtime.files import read_tensors, write_tensors

# Type of the gaps of each encoding, and its largest number L, which means "L, and more follows".
_MORE = {"gaps8": (torch.uint8, 255), "gaps16": (torch.int16, 32767)}


@dataclass(frozen=True)
class CompressedFile:
    """A compressed file that was written, with its size before and after compression.

    Attributes:
        path: the file.
        size: size of the file in bytes.
        dense_size: size of the uncompressed tensors in bytes; a tied tensor counts once per name.
        encodings: encoding of each tensor, by name.
    """

    path: Path
    size: int
    dense_size: int
    encodings: Mapping[str, str]

    def __str__(self) -> str:
        """Return one line with the name of the file, both sizes and their ratio."""
        return (
            f"{self.path.name}: {self.size:,} bytes instead of {self.dense_size:,}, "
            f"{self.dense_size / self.size:.1f}x smaller"
        )


def save_compressed(path: str | Path, model: nn.Module) -> CompressedFile:
    """Write the dense state of a model to a compressed safetensors file, atomically.

    Args:
        path: the file; its folder must exist.
        model: a model with or without masks. ``load_compressed`` returns its ``dense_state_dict``,
            exact to the bit.

    Raises:
        ValueError: if the folder of the file does not exist.
    """
    tensors: dict[str, Tensor] = {}
    shapes, encodings = {}, {}
    size = 0
    for name, tensor in dense_state_dict(model).items():
        flat = tensor.detach().cpu().contiguous().flatten()
        size += flat.numel() * flat.element_size()
        encoding, parts = _encode(flat)
        encodings[name], shapes[name] = encoding, list(tensor.shape)
        tensors |= {f"{part}/{name}": each for part, each in parts.items()}
    write_tensors(path, tensors, {"encodings": encodings, "shapes": shapes})
    return CompressedFile(Path(path), Path(path).stat().st_size, size, encodings)


def load_compressed(path: str | Path) -> dict[str, Tensor]:
    """Return the dense state that ``save_compressed`` wrote, for ``load_state_dict``.

    Raises:
        ValueError: if the file is missing, truncated or no compressed checkpoint, or if its parts
            do not fit together.
    """
    path = Path(path)
    tensors, content = read_tensors(path)
    if not {"encodings", "shapes"} <= content.keys():
        raise ValueError(f"{path} is a safetensors file, but was not written by save_compressed.")
    state = {}
    for name, encoding in content["encodings"].items():
        parts = {
            part: tensors[f"{part}/{name}"]
            for part in ("values", "places")
            if f"{part}/{name}" in tensors
        }
        try:
            state[name] = _decode(encoding, parts, content["shapes"][name])
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name} does not fit together: {error}") from error
    return state


def _encode(flat: Tensor) -> tuple[str, dict[str, Tensor]]:
    """Return the smallest encoding of a flat tensor, and the tensors to store for it."""
    if not flat.is_floating_point():
        return "dense", {"values": flat}
    width = flat.element_size()
    # An entry is zero if all its bits are; -0.0 is stored as a value, so that it is restored.
    bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width])
    places = bits.nonzero().flatten()
    gaps = places.diff(prepend=places.new_full((1,), -1)) - 1
    sizes = {"dense": len(flat) * width, "bitmask": -(-len(flat) // 8) + len(places) * width}
    for name, (dtype, more) in _MORE.items():
        sizes[name] = int((gaps // more + 1).sum()) * dtype.itemsize + len(places) * width
    encoding = min(sizes, key=lambda name: sizes[name])
    if encoding == "dense":
        return encoding, {"values": flat}
    if encoding == "bitmask":
        return encoding, {"values": flat[places], "places": _packed(bits != 0)}
    return encoding, {"values": flat[places], "places": _written(gaps, *_MORE[encoding])}


def _decode(encoding: str, parts: Mapping[str, Tensor], shape: list[int]) -> Tensor:
    """Return the tensor of a shape that ``_encode`` has split into parts.

    Raises:
        ValueError: if places and values do not fit together; other exceptions if a part is missing
            or does not fit the shape.
    """
    values = parts["values"]
    if encoding == "dense":
        return values.view(shape)
    flat = values.new_zeros(shape).flatten()
    stored = parts["places"]
    dtype, _ = _MORE.get(encoding, (torch.uint8, 0))
    if stored.dtype != dtype or bool((stored < 0).any()):
        raise ValueError(f"the places are {stored.dtype}, or negative.")
    if encoding == "bitmask":
        places = _unpacked(stored)[: len(flat)].nonzero().flatten()
    else:
        places = _read(stored, _MORE[encoding][1])
    if places.shape != values.shape:
        raise ValueError(f"there are {len(places)} places for {len(values)} values.")
    flat[places] = values
    return flat.view(shape)


def _packed(marks: Tensor) -> Tensor:
    """Return eight bool marks per byte, the first one in the lowest bit."""
    padded = torch.zeros(-(-len(marks) // 8) * 8, dtype=torch.uint8)
    padded[: len(marks)] = marks
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return (padded.view(-1, 8) * powers).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Tensor:
    """Return the bool marks that ``_packed`` has packed, padded to whole bytes."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return ((packed[:, None] & powers) != 0).flatten()


def _written(gaps: Tensor, dtype: torch.dtype, more: int) -> Tensor:
    """Return gaps as numbers of ``dtype``; its largest number ``more`` means "and more follows"."""
    numbers = gaps // more + 1
    written = torch.full((int(numbers.sum()),), more, dtype=dtype)
    written[numbers.cumsum(0) - 1] = (gaps % more).to(dtype)
    return written


def _read(written: Tensor, more: int) -> Tensor:
    """Return the places of the non-zeros, from the gaps that ``_written`` wrote."""
    ends = written != more
    return written.long().cumsum(0)[ends] + torch.arange(int(ends.sum()))
