"""The state of a mask as one tensor of bytes, so that it travels in the network's state_dict.

The bytes are the length of a JSON text (8 bytes, little-endian), the text, and the mask with eight
entries a byte. The tensor is no buffer: averages of buffers (EMA) and DDP do not touch it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_LENGTH = 8
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)


def packed(facts: Mapping[str, Any], mask: Tensor | None = None, *, length: int = 0) -> Tensor:
    """Return facts and a mask as one tensor, uint8, shape [bytes], on the CPU.

    Args:
        facts: plain JSON data.
        mask: bool tensor of any shape; None for no mask.
        length: least length of the text, in bytes; spaces fill it up. Averages of states (EMA) need
            tensors that keep their shape while the facts change.
    """
    text = json.dumps(facts).encode().ljust(length)
    head = torch.tensor(list(len(text).to_bytes(_LENGTH, "little") + text), dtype=torch.uint8)
    if mask is None:
        return head
    ones = mask.detach().flatten().to(torch.uint8)
    ones = torch.nn.functional.pad(ones, (0, -len(ones) % 8)).view(-1, 8)
    powers = torch.tensor(_POWERS, dtype=torch.uint8, device=ones.device)
    return torch.cat([head, (ones * powers).sum(1, dtype=torch.uint8).cpu()])


def facts_of(state: object) -> dict[str, Any]:
    """Return the facts in a tensor that ``packed`` made.

    Raises:
        ValueError: if it is no such tensor.
    """
    text = _text(state)
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(_DAMAGED)
    return found


def mask_of(state: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Return the mask in a tensor that ``packed`` made: bool, of this shape, on the CPU.

    Raises:
        ValueError: if the tensor holds no mask of this shape.
    """
    head, size = _LENGTH + len(_text(state)), torch.Size(shape).numel()
    stored = state.detach().cpu()[head:]
    if len(stored) != -(-size // 8):
        raise ValueError(_DAMAGED)
    powers = torch.tensor(_POWERS, dtype=torch.uint8)
    ones = (stored[:, None] & powers).ne(0).flatten()[:size]
    return ones.view(shape)


def _text(state: object) -> bytes:
    """Return the JSON text in the bytes of a state, after checking that it is complete."""
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.dim() != 1:
        raise ValueError(_DAMAGED)
    length = int.from_bytes(bytes(state[:_LENGTH].tolist()), "little")
    text = bytes(state[_LENGTH : _LENGTH + length].tolist()) if length <= len(state) else b""
    if not text.startswith(b"{") or not text.rstrip().endswith(b"}"):
        raise ValueError(_DAMAGED)
    return text


_DAMAGED = (
    "the state of a mask is damaged, as in an average of several states: bits of masks cannot be "
    "averaged. Average what dense_state_dict(model) returns, or call pruner.finalize(copy)."
)
