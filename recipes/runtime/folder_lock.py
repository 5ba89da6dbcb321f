"""Lock of an output folder, so that two commands do not write to one folder at the same time.

The kernel holds the lock for a process and releases it when the process ends, even if it is killed.
The file ``.in-use`` in the folder only carries the lock and says who holds it; one that a killed
process leaves behind locks nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_NAME = ".in-use"
_FAR = 1 << 30  # on Windows a locked byte cannot be read, so one far behind the text is locked


class FolderInUse(RuntimeError):
    """Error raised if another running command writes to the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the context, no other command that calls this function may write to a folder.

    The folder is made if it does not exist, and removed at the end if it is still empty. Where the
    file system has no locks, nothing is locked. Under torchrun only the first process of the
    command should call this.

    Args:
        folder: the folder that the command writes to.

    Raises:
        FolderInUse: if another running process holds the lock.
        ValueError: if the folder cannot be made, or nothing can be written to it.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / _NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _opened(path, folder)
    except OSError as error:
        _remove_empty(made)
        raise ValueError(
            f"cannot write to the folder {folder}: {error.strerror}; give another --out."
        ) from error
    try:
        try:
            os.truncate(handle, 0)
            os.write(handle, json.dumps(_holder()).encode())
        except OSError as error:  # the disk is full
            raise ValueError(
                f"cannot write to the folder {folder}: {error.strerror}; free some space, or give "
                "another --out."
            ) from error
        yield
    finally:
        if sys.platform == "win32":  # an open file cannot be removed
            os.close(handle)
            path.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
            os.close(handle)
        _remove_empty(made)


def _opened(path: Path, folder: Path) -> int:
    """Return the open, locked file of a folder.

    A command that ends removes its file. If that happens between opening and locking, the lock is
    on a file that is no longer in the folder, and the next one is tried.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            taken = _lock(handle)
            if not taken:
                raise FolderInUse(_refusal(folder, handle))
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file; return False if another process holds the lock."""
    try:
        if sys.platform == "win32":
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error means that this file system has no locks.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _holder() -> dict[str, str | int]:
    """Return what the file says about this process."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _refusal(folder: Path, handle: int) -> str:
    """Return the sentence that says who holds the lock of a folder."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        found = json.loads(os.read(handle, 4096))
        who = f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):  # it has not written its line yet
        who = "another process"
    return (
        f"{folder} is in use by {who}; wait until it has ended or stop it, or give another --out."
    )


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty, inner ones first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty, or not there
            return
