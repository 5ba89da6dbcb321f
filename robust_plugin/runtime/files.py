"""Files that are written atomically: text, bytes, and tensors with JSON in one safetensors file.

A process that is killed while it writes leaves the old file as it was, or no file. Nothing in the
files can run code: a pickle is never read or written.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robust_plugin.runtime.values import check_path

_FORMAT = "1"
# The disk is full, or the user's share of it; Windows has no such shares.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class DiskFull(OSError):
    """Error raised if there is no space left for a file; nothing half-written is left behind."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Return a context manager that yields a partial file, which replaces ``path`` at the end.

    The code within the context writes the partial file. The file lies in the folder of ``path``,
    and its name starts with a dot and ends in ``.partial``. It is flushed to the disk before it
    replaces ``path``. After an error it is removed, and ``path`` stays as it was.

    Raises:
        DiskFull: if there is no space left for the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise DiskFull(
            f"there is no space left on the disk to write {path}; nothing half-written is left, "
            "and what was finished before is kept. Free some space and give the same command again "
            "to continue."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _is_full(error: OSError | SafetensorError) -> bool:
    """Return whether an error says that the disk is full; safetensors says it in its text only."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


def check_writable(folder: Path) -> None:
    """Raise a ValueError if no file can be written to a folder, which need not exist.

    A temporary file is made for a moment, in the folder or in the innermost one above it that
    exists; permissions alone do not tell whether a file system is read-only.
    """
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        raise ValueError(
            f"cannot write to the folder {folder}: {error.strerror}; give another --out."
        ) from error


def is_partial(path: Path) -> bool:
    """Return whether ``path`` is a partial file, which ``replacing`` writes or a crash has left."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write tensors and JSON to one safetensors file, atomically.

    Args:
        path: the file; its folder must exist.
        tensors: tensors by name, on any device.
        content: values that JSON can hold, by name; numbers must be finite.

    Raises:
        TypeError: if ``path`` is not the name of a file.
        ValueError: if the folder does not exist, ``path`` is a folder, or JSON cannot hold the
            content.
    """
    path = check_path(path, written=True)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to.")
    try:
        plain_content = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: meta and the optimizer's settings have to be finite numbers, strings, lists "
            f"and mappings; {error}."
        ) from error
    # Tied tensors share memory, which the format refuses: each name gets its own copy.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {"robust_plugin": _FORMAT, "content": plain_content}
    with replacing(path) as partial:
        save_file(plain, partial, metadata=metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors by name and the JSON content of a file that ``write_tensors`` wrote.

    Raises:
        ValueError: if the file is missing, truncated or no safetensors file.
    """
    if path.is_dir():
        raise ValueError(f"there is no checkpoint at {path}, a folder; give the name of a file.")
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        content = json.loads(metadata.get("content", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        pickled = path.read_bytes()[:2] in (b"PK", b"\x80\x02")
        hint = (
            ". It is a file of torch.save: read it by torch.load(path, weights_only=True), and "
            "give the network's state to load_dense_state_dict(model, state)."
        )
        raise ValueError(
            f"{path} is truncated or no safetensors file: {error}{hint * pickled}"
        ) from error
    return tensors, content


def write_text(path: Path, text: str) -> None:
    """Write a text to the file ``path`` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes to the file ``path``, atomically."""
    with replacing(path) as partial:
        partial.write_bytes(content)
