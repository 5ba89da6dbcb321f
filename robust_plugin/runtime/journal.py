"""SHA-256 of tensors and networks: whether two results are of the same points and model."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.runtime.files import read_tensors, write_tensors, write_text
from robust_plugin.version import __version__


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


# Another number of threads, or another machine, rounds otherwise; another network is farther off.
_RELATIVE = 1e-3


class Journal:
    """Finished units of one evaluation in a folder.

    Args:
        folder: made if it is missing.
        fingerprint: what every unit depends on, in words or digests; versions are added to it.

    Raises:
        ValueError: if the folder holds the journal of something else, naming what differs, or
            files that are no journal's.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        versions = {"torch": torch.__version__, "robust_plugin": __version__}
        fingerprint = {**fingerprint, **versions}
        path = self.folder / "fingerprint.json"
        if self.folder.is_file():
            raise ValueError(f"{self.folder} is a file; give a folder for the journal.")
        # Before the fingerprint is looked for, which another process may write at this moment.
        entries = list(self.folder.iterdir()) if self.folder.is_dir() else []
        if path.is_file():
            self._compare(path, fingerprint)
        elif not all(_is_partial(each) for each in entries):
            raise ValueError(f"{self.folder} is not empty and no journal; give another folder.")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(fingerprint, indent=1))

    def _compare(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        try:
            saved = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}); delete the journal.") from error
        for key in [*saved, *fingerprint]:
            if saved.get(key) != fingerprint.get(key):
                raise ValueError(
                    f"{self.folder} is the journal of another evaluation: {key} was "
                    f"{saved.get(key)} and is now {fingerprint.get(key)}. Give another folder, "
                    "or delete it."
                )

    def check_answers(self, logits: Tensor) -> None:
        """Keep what the network says of some points, or compare it with what was kept.

        A fingerprint of weights does not see constants and code of the forward pass.

        Raises:
            ValueError: if the network answers otherwise than the journal's did.
        """
        kept = self.get("answers")
        if kept is None:
            self.put("answers", {"logits": logits})
            return
        before, now = kept["logits"].double(), logits.detach().cpu().double()
        if before.shape != now.shape or not torch.allclose(
            before, now, rtol=_RELATIVE, atol=_RELATIVE * float(before.abs().max())
        ):
            raise ValueError(
                f"{self.folder} is the journal of another network: of the same weights, but its "
                "outputs are others. Give another folder, or delete it."
            )

    def get(self, unit: str) -> dict[str, Tensor] | None:
        """Return what a finished unit gave, or None.

        Raises:
            ValueError: if its file cannot be read.
        """
        path = self._path(unit)
        try:
            return read_tensors(path)[0] if path.is_file() else None
        except ValueError as error:
            raise ValueError(f"{error} Delete that file; it is computed again.") from error

    def put(self, unit: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a finished unit."""
        write_tensors(self._path(unit), tensors, {"unit": unit})

    def _path(self, unit: str) -> Path:
        return self.folder / f"{unit}.safetensors"


def _is_partial(path: Path) -> bool:
    """Whether a kill, or another process that is writing now, has left this behind."""
    return path.name.startswith(".") and path.name.endswith(".partial")
