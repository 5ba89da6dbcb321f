"""Parallel worker processes, which exit when their parent exits, even if it is killed."""

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

from robust_plugin.recipes.runtime.progress import (
    RunProgress,
    hide_progress,
    shows_bars,
    shows_progress,
)
from robust_plugin.runtime.progress import Show, reporting

T = TypeVar("T")


def in_parallel(
    function: Callable[[Any], T], items: Sequence[Any], *, jobs: int, what: str
) -> list[T]:
    """Return the results of a function for all items, in the order of the items.

    The first exception in a worker process ends all of them and is raised here.

    Args:
        function: function of one item; spawned processes must be able to import it by its name.
        items: arguments of the calls, one per call.
        jobs: largest number of worker processes; with one job or one item the function runs in
            this process.
        what: text in front of the progress bar.
    """
    with reporting(RunProgress({}), what, total=len(items), unit="jobs") as show:
        if min(jobs, len(items)) == 1:
            return [_shown(function(item), show, done) for done, item in enumerate(items, 1)]
        return _in_processes(function, items, min(jobs, len(items)), show)


def _shown(result: T, show: Show, done: int) -> T:
    show(done)
    return result


def _in_processes(
    function: Callable[[Any], T], items: Sequence[Any], jobs: int, show: Show
) -> list[T]:
    """Return the results of a function for all items, computed in worker processes.

    Args:
        function: function of one item.
        items: arguments of the calls.
        jobs: number of processes.
        show: function that is told how many calls have ended.
    """
    # Bars of several processes would overwrite one another; lines may be mixed.
    hidden = shows_bars() or not shows_progress()
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_as_worker, initargs=(hidden,)
    )
    try:
        futures = [pool.submit(function, item) for item in items]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            show(done)
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def _as_worker(hidden: bool) -> None:
    """Prepare a new worker process.

    It ignores Ctrl-C, which the parent handles, and exits when the parent exits.

    Args:
        hidden: whether the process shows no progress.
    """
    if hidden:
        hide_progress()
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for the next tensor.

    A forward pass allocates and frees the same megabytes again and again. By default glibc returns
    them to the kernel each time, and the kernel zeroes them before it hands them out again. With
    the default, adversarial training of a ResNet-18 of width 16 took 1.3 times as long (batch size
    128, one thread).

    Only the processes of the command line call this function, since a library should not change
    the allocator of the program that imports it.

    Returns:
        bool: whether it worked; without glibc it does not.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
