"""Checkpoints: one safetensors file with JSON beside the tensors, written atomically.

Nothing in it can run code: a pickle is never read or written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_FORMAT = "1"


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write tensors and JSON to one safetensors file, atomically."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to.")
    try:
        plain_content = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: meta and the optimizer's settings have to be finite numbers, strings, lists "
            f"and mappings; {error}."
        ) from error
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # Tied tensors share memory, which the format refuses: each name gets its own copy.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {"robust_plugin": _FORMAT, "content": plain_content}
    try:
        save_file(plain, partial, metadata=metadata)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote.

    Raises:
        ValueError: if the file is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        content = json.loads(metadata.get("content", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    return tensors, content


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
