"""Jobs side by side: worker processes that end with their parent, however it ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def in_parallel(
    function: Callable[[Any], T], items: Sequence[Any], *, jobs: int, what: str
) -> list[T]:
    """Map a function over items in their order, in this process or in several.

    Args:
        function: importable by its name, as spawned processes need it.
        items: what it is called with.
        jobs: processes at most; with one job or one item it runs in this process.
        what: is done, for the bar.
    """
    if min(jobs, len(items)) == 1:
        return [function(item) for item in tqdm(items, desc=what, disable=None)]
    pool = ProcessPoolExecutor(
        min(jobs, len(items)), multiprocessing.get_context("spawn"), initializer=_as_worker
    )
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in tqdm(as_completed(futures), total=len(futures), desc=what, disable=None):
            future.result()
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def _as_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Numbers of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for the next tensor; return whether it does now.

    A forward pass allocates and frees the same megabytes again and again, and by default glibc
    returns them to the kernel each time and has them zeroed anew: adversarial training of a
    ResNet-18 of width 16 took 1.3 times as long (batch 128, one thread). For the command line's own
    processes; a library has no business with its user's allocator. Nothing happens elsewhere than
    under glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
