"""Checks of a file before weights are loaded from it.

A missing file, a folder, an empty file and a Git LFS pointer each get an error that says what to
do. Without these checks the loader would fail with an error about the file format.
"""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"


def check_file(path: Path) -> None:
    """Raise a ValueError unless there is a file at a path that may hold weights.

    Only the first bytes are read, so the file may still turn out to be no file of weights.

    Args:
        path: path of the file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file of weights in it.")
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}.")
    with path.open("rb") as file:
        first = file.read(len(_LFS))
    if not first:
        raise ValueError(f"{path} is empty (0 bytes); write or download it again.")
    if first == _LFS:
        raise ValueError(
            f"{path} is a pointer of Git LFS and not the weights themselves; run git lfs pull in "
            "its repository."
        )
