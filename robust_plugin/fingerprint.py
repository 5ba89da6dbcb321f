"""SHA-256 of tensors and networks: whether two results are of the same points and model."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

from torch import Tensor, nn


class Fingerprint:
    """A digest that grows by tensors and networks; equal content gives equal digests."""

    def __init__(self, *parts: Tensor | nn.Module) -> None:
        self._found = hashlib.sha256()
        for part in parts:
            self.add(part)

    def add(self, part: Tensor | nn.Module) -> None:
        """Take in a tensor (dtype, shape, values), or a network (layers, parameters, buffers)."""
        if isinstance(part, nn.Module):
            self._found.update(str(part).encode())
            for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
                self._found.update(name.encode())
                self.add(tensor)
            return
        plain = part.detach().cpu().contiguous()
        self._found.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        size = plain.numel() * plain.element_size()
        if size:  # the memory itself: NumPy, which tensor.numpy() needs, is not ours to ask for
            memory: Any = (ctypes.c_ubyte * size).from_address(plain.data_ptr())
            self._found.update(memory)

    def __str__(self) -> str:
        """Return the digest in hexadecimal digits."""
        return self._found.hexdigest()
