"""Compressed checkpoints: of each tensor the non-zeros and where they are, bit for bit.

A tensor of N entries with K non-zeros of b bytes each is stored as whichever takes least:

- ``dense``: its N entries, N b bytes;
- ``bitmask``: one bit an entry, and the values, N / 8 + K b bytes;
- ``gaps8``, ``gaps16``: the number of zeros before each non-zero in one or two bytes, and the
  values, K + K b or 2 K + 2 K b bytes and a little. A gap of the largest number L or more is
  written as L once for every L it holds, then the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.masks.detach import dense_state_dict
from robust_plugin.runtime.files import read_tensors, write_tensors

# The largest number of a gap's type, which stands for "and more".
_MORE = {"gaps8": (torch.uint8, 255), "gaps16": (torch.int16, 32767)}


@dataclass(frozen=True)
class CompressedFile:
    """A file that was written, and what its state would take as it is.

    Attributes:
        path: the file.
        size: bytes of the file.
        dense_size: bytes of the state's tensors, tied ones once a name.
        encodings: how each tensor is stored.
    """

    path: Path
    size: int
    dense_size: int
    encodings: Mapping[str, str]

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.path.name}: {self.size:,} bytes instead of {self.dense_size:,}, "
            f"{self.dense_size / self.size:.1f}x smaller"
        )


def save_compressed(path: str | Path, model: nn.Module) -> CompressedFile:
    """Write the dense state of a model, finalized or with its masks; safetensors, atomically.

    Args:
        path: the file; its folder must exist.
        model: its ``dense_state_dict`` is what ``load_compressed`` gives back, bit for bit.

    Raises:
        ValueError: if there is no such folder.
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
    """Return the dense state that ``save_compressed`` was given, for ``load_state_dict``.

    Raises:
        ValueError: if the file is missing, truncated, no compressed checkpoint, or its parts do
            not fit together.
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
    """Return how a flat tensor is stored in the fewest bytes, and its parts."""
    if not flat.is_floating_point():
        return "dense", {"values": flat}
    width = flat.element_size()
    # Zero is the pattern of bits; -0.0 is a value like others, and comes back.
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
    """Eight bool marks a byte, the first in the lowest bit."""
    padded = torch.zeros(-(-len(marks) // 8) * 8, dtype=torch.uint8)
    padded[: len(marks)] = marks
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return (padded.view(-1, 8) * powers).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Tensor:
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return ((packed[:, None] & powers) != 0).flatten()


def _written(gaps: Tensor, dtype: torch.dtype, more: int) -> Tensor:
    numbers = gaps // more + 1
    written = torch.full((int(numbers.sum()),), more, dtype=dtype)
    written[numbers.cumsum(0) - 1] = (gaps % more).to(dtype)
    return written


def _read(written: Tensor, more: int) -> Tensor:
    """Return the places of the non-zeros."""
    ends = written != more
    return written.long().cumsum(0)[ends] + torch.arange(int(ends.sum()))
