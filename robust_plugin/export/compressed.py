"""Compressed checkpoints: the non-zeros of each tensor and their positions, exact to the bit.

A floating-point tensor of N entries, K of them non-zeros, with b bytes per entry is stored in the
smallest of these encodings; other tensors are stored ``dense``:

- ``dense``: all N entries; N b bytes;
- ``bitmask``: one bit per entry, and the K non-zeros; N / 8 + K b bytes;
- ``gaps8``, ``gaps16``: for each non-zero, the number of zeros between it and the non-zero before
  it (the gap) as an integer of one or two bytes, and the K non-zeros; K + K b or 2 K + K b bytes.
  With L = 255 or 32767, the largest value of these integers, a gap g is written as L repeated
  floor(g / L) times and then the remainder, so that each long gap takes some bytes more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.masks.detach import dense_state_dict
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.files import read_tensors, write_tensors
from robust_plugin.runtime.tables import listed
from robust_plugin.runtime.values import check_path

# Integer type of the gaps of each encoding, and its largest value L, which means "L zeros, and the
# gap goes on in the next integer".
_MORE = {"gaps8": (torch.uint8, 255), "gaps16": (torch.int16, 32767)}


@dataclass(frozen=True)
class CompressedFile:
    """A compressed file that was written, with its size before and after compression.

    Attributes:
        path: the file.
        size: size of the file in bytes.
        dense_size: size of the uncompressed tensors in bytes; a tied tensor counts once per name.
        encodings: encoding of each tensor, such as ``"bitmask"``, by the tensor's name.
    """

    path: Path
    size: int
    dense_size: int
    encodings: Mapping[str, str]

    def __repr__(self) -> str:
        """Return one line: that of ``str`` in parentheses."""
        return f"CompressedFile({listed([str(self)])})"

    def __str__(self) -> str:
        """Return one line with the name of the file, both sizes and their ratio."""
        return (
            f"{self.path.name}: {self.size:,} bytes instead of {self.dense_size:,}, "
            f"{self.dense_size / self.size:.1f}x smaller"
        )


@explain_wrong_calls
def save_compressed(path: str | Path, model: nn.Module) -> CompressedFile:
    """Write the state_dict of a model to a compressed safetensors file, atomically.

    What is written is the ``dense_state_dict``: that of the model without masks, with zeros for
    pruned weights. ``load_compressed`` returns it exact to the bit.

    Args:
        path: the file; its folder must exist.
        model: a model with or without masks.

    Raises:
        ValueError: if the folder of the file does not exist.
    """
    path = check_path(path, written=True)
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
    return CompressedFile(path, path.stat().st_size, size, encodings)


@explain_wrong_calls
def load_compressed(path: str | Path) -> dict[str, Tensor]:
    """Return the state_dict that ``save_compressed`` wrote, for ``load_state_dict``.

    Raises:
        ValueError: if the file is missing or truncated, was not written by ``save_compressed``, or
            has parts that do not fit together.
    """
    path = check_path(path)
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
    """Return the name of the smallest encoding of a flat tensor, and the tensors to store for it.

    The tensors are ``"values"`` and, except in the encoding ``"dense"``, ``"places"``: the
    positions of the values.
    """
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
    """Return the tensor that ``_encode`` has encoded.

    Args:
        encoding: name of the encoding.
        parts: the stored tensors, ``"values"`` and, except for ``"dense"``, ``"places"``.
        shape: shape of the tensor to return.

    Raises:
        ValueError: if positions and values do not fit together; other exceptions if a part is
            missing or does not fit the shape.
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
    """Return booleans as uint8, eight per byte, the first one in the lowest bit."""
    padded = torch.zeros(-(-len(marks) // 8) * 8, dtype=torch.uint8)
    padded[: len(marks)] = marks
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return (padded.view(-1, 8) * powers).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Tensor:
    """Return the booleans that ``_packed`` has packed, with False at the end up to a whole byte."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return ((packed[:, None] & powers) != 0).flatten()


def _written(gaps: Tensor, dtype: torch.dtype, more: int) -> Tensor:
    """Return the gaps as integers of a small type, long gaps as several integers.

    Args:
        gaps: number of zeros before each non-zero, int64, shape [K].
        dtype: integer type of the result.
        more: largest value of ``dtype``; it means that the gap goes on in the next integer.
    """
    numbers = gaps // more + 1
    written = torch.full((int(numbers.sum()),), more, dtype=dtype)
    written[numbers.cumsum(0) - 1] = (gaps % more).to(dtype)
    return written


def _read(written: Tensor, more: int) -> Tensor:
    """Return the positions of the non-zeros in the flat tensor, int64, shape [K].

    Args:
        written: the gaps as ``_written`` has returned them.
        more: the value that means that the gap goes on in the next integer.
    """
    ends = written != more
    return written.long().cumsum(0)[ends] + torch.arange(int(ends.sum()))
