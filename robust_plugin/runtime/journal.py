"""Journals, which let a long computation resume, and the fingerprints that they compare.

A journal is a folder with one file per finished unit of work. Its fingerprint holds everything that
the results depend on, so that a journal never answers for another computation. A ``Fingerprint`` is
the SHA-256 of tensors and networks.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robust_plugin.runtime.files import is_partial, read_tensors, write_tensors, write_text
from robust_plugin.runtime.tolerances import JOURNAL_LOGITS
from robust_plugin.version import __version__

Work = TypeVar("Work")


class Fingerprint:
    """A digest of tensors and networks; equal content gives equal digests.

    Args:
        parts: tensors and networks to add at once.
    """

    def __init__(self, *parts: Tensor | nn.Module) -> None:
        self._digest = hashlib.sha256()
        for part in parts:
            self.add(part)

    def add(self, part: Tensor | nn.Module) -> None:
        """Add a tensor (dtype, shape, values), or a network (layers, parameters, buffers)."""
        if isinstance(part, nn.Module):
            self._digest.update(str(part).encode())
            for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
                self._digest.update(name.encode())
                self.add(tensor)
            return
        plain = part.detach().cpu().contiguous()
        self._digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        size = plain.numel() * plain.element_size()
        if size:  # by the address of the memory: tensor.numpy() would require NumPy
            memory: Any = (ctypes.c_ubyte * size).from_address(plain.data_ptr())
            self._digest.update(memory)

    def __str__(self) -> str:
        """Return the digest in hexadecimal digits."""
        return self._digest.hexdigest()


class Journal:
    """A folder with the results of the finished units of one computation.

    Args:
        folder: folder of the journal; created if it is missing.
        fingerprint: everything that the results depend on, in words or digests by name; the
            versions of torch and robust_plugin are added to it.

    Raises:
        ValueError: if the folder holds the journal of another computation, naming what differs, or
            files that belong to no journal.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        versions = {"torch": torch.__version__, "robust_plugin": __version__}
        fingerprint = {**fingerprint, **versions}
        path = self.folder / "fingerprint.json"
        if self.folder.is_file():
            raise ValueError(f"{self.folder} is a file; give a folder for the journal.")
        # The folder is listed before the fingerprint is read: another process may begin the journal
        # in between, and its files must not look like those of something else.
        entries = list(self.folder.iterdir()) if self.folder.is_dir() else []
        if path.is_file():
            self._compare(path, fingerprint)
        elif not all(is_partial(each) for each in entries):
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
        """Store the logits of some points in a new journal, or compare them with the stored ones.

        This finds networks of equal weights whose forward pass has other constants or other code,
        which the fingerprint of the weights cannot tell apart.

        Args:
            logits: logits of the same points at each call, shape [B, classes].

        Raises:
            ValueError: if the network gives other logits than the network of the journal.
        """
        kept = self.get("answers")
        if kept is None:
            self.put("answers", {"logits": logits})
            return
        before, now = kept["logits"].double(), logits.detach().cpu().double()
        if before.shape != now.shape or not torch.allclose(
            before, now, rtol=JOURNAL_LOGITS, atol=JOURNAL_LOGITS * float(before.abs().max())
        ):
            raise ValueError(
                f"{self.folder} is the journal of another network: of the same weights, but its "
                "outputs are others. Give another folder, or delete it."
            )

    def get(self, unit: str) -> dict[str, Tensor] | None:
        """Return the tensors of a finished unit, or None if the unit is not finished.

        Raises:
            ValueError: if its file cannot be read.
        """
        path = self._path(unit)
        try:
            return read_tensors(path)[0] if path.is_file() else None
        except ValueError as error:
            raise ValueError(f"{error} Delete that file; it is computed again.") from error

    def put(self, unit: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a finished unit."""
        write_tensors(self._path(unit), tensors, {"unit": unit})

    def _path(self, unit: str) -> Path:
        return self.folder / f"{unit}.safetensors"


def each_unit(
    units: Mapping[str, Work],
    compute: Callable[[Work], dict[str, Tensor]],
    journal: Journal | None,
) -> Iterator[tuple[Work, dict[str, Tensor]]]:
    """Yield each unit of work with its result, from the journal or computed and stored there.

    A result is computed only when it is asked for, so that ``compute`` may depend on the results
    before it.

    Args:
        units: work by unit name, in its order.
        compute: computes the result of one unit of work, tensors by name.
        journal: journal with the results of finished units; None computes all of them.
    """
    for unit, work in units.items():
        result = journal.get(unit) if journal is not None else None
        if result is None:
            result = compute(work)
            if journal is not None:
                journal.put(unit, result)
        yield work, result


def by_points(
    points: int,
    size: int,
    compute: Callable[[slice], dict[str, Tensor]],
    *,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Return the results of all points, computed for some points at a time.

    Args:
        points: number of points.
        size: number of points per unit of the journal.
        compute: computes the result of a slice of the points: tensors by name, one row per point.
        journal: journal with the results of finished units; None computes all of them.
        progress: called after each unit, with the number of finished points and of all points.
    """
    starts = range(0, points, size)
    units = {f"points-{first:06d}": slice(first, first + size) for first in starts}
    found = []
    for rows, result in each_unit(units, compute, journal):
        found.append(result)
        if progress is not None:
            progress(min(rows.stop, points), points)
    return {key: torch.cat([each[key] for each in found]) for key in found[0]}
