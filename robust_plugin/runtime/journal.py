"""Journals, which let a long computation resume, and ``Fingerprint``, a digest of networks.

A journal is a folder with one file per finished unit of work, such as one attack on one batch. Its
file ``fingerprint.json`` holds all that the results depend on, so that the journal of another
computation is refused. A ``Fingerprint`` is the SHA-256 digest of tensors and networks.
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
from robust_plugin.runtime.progress import Show
from robust_plugin.runtime.tolerances import JOURNAL_LOGITS
from robust_plugin.version import __version__

Work = TypeVar("Work")


class Fingerprint:
    """The SHA-256 digest of tensors and networks; ``str`` returns it as text.

    Equal tensors and networks, added in the same order, give equal digests.

    Args:
        parts: tensors and networks to digest; ``add`` adds more of them.
    """

    def __init__(self, *parts: Tensor | nn.Module) -> None:
        self._digest = hashlib.sha256()
        for part in parts:
            self.add(part)

    def add(self, part: Tensor | nn.Module) -> None:
        """Add a tensor (dtype, shape, values), or a network.

        Of a network, that is its layers, parameters and buffers, and tensors of further states
        (the bits of masks).
        """
        if isinstance(part, nn.Module):
            self._digest.update(str(part).encode())
            further = [
                (name, value)
                for name, value in part.state_dict().items()
                if name.endswith("_extra_state") and isinstance(value, Tensor)
            ]
            for name, tensor in [*part.named_parameters(), *part.named_buffers(), *further]:
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
        fingerprint: everything that the results depend on: the name of each setting or tensor, and
            its value or digest as text. The versions of torch and robust_plugin are added.

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

        This detects a network that has the weights of the journal's network but other constants or
        other code in its forward pass, which a digest of the weights does not show.

        Args:
            logits: the network's logits of a few points, shape [B, classes]; give the same points
                each time that the journal is opened.

        Raises:
            ValueError: if the logits differ from the stored ones by more than rounding.
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
        """Return the tensors of a finished unit by their names, or None if it is not finished.

        Args:
            unit: name of the unit.

        Raises:
            ValueError: if the file of the unit cannot be read.
        """
        path = self._path(unit)
        try:
            return read_tensors(path)[0] if path.is_file() else None
        except ValueError as error:
            raise ValueError(f"{error} Delete that file; it is computed again.") from error

    def put(self, unit: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors (by name) of the finished unit of the name ``unit``."""
        write_tensors(self._path(unit), tensors, {"unit": unit})

    def _path(self, unit: str) -> Path:
        return self.folder / f"{unit}.safetensors"


def each_unit(
    units: Mapping[str, Work],
    compute: Callable[[Work], dict[str, Tensor]],
    journal: Journal | None,
) -> Iterator[tuple[Work, dict[str, Tensor]]]:
    """Yield each value of ``units`` with its result, which is read from the journal or computed.

    A computed result is stored in the journal. It is computed only when the iterator reaches it, so
    that ``compute`` may depend on the results before it.

    Args:
        units: the units of work in their order: the name of each in the journal, and what
            ``compute`` needs to compute it.
        compute: function that returns the result of one value of ``units``, as tensors by name.
        journal: journal with the results of finished units; None for no journal.
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
    show: Show,
) -> dict[str, Tensor]:
    """Compute results for some points at a time, and return those of all points, tensors by name.

    Args:
        points: number of all points.
        size: number of points to compute at a time; each such part is one unit of the journal.
        compute: function that returns the results of the points in a slice, as tensors by name
            whose first axis is the point.
        journal: journal with the results of finished units; None for no journal.
        show: function that is told after each unit how many points are finished; ``reporting`` of
            ``progress.py`` makes one.
    """
    starts = range(0, points, size)
    units = {f"points-{first:06d}": slice(first, first + size) for first in starts}
    found = []
    for rows, result in each_unit(units, compute, journal):
        found.append(result)
        show(min(rows.stop, points))
    return {key: torch.cat([each[key] for each in found]) for key in found[0]}
