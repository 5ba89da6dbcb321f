"""Jobs side by side: worker processes that end with their parent, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from tqdm import tqdm

from robust_plugin.recipes.allocator import keep_freed_memory

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
