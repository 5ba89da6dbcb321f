"""A fair comparison of the running times of two functions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternating(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    seconds: float,
    clock: Callable[[], float] | None = None,
) -> tuple[float, float]:
    """Call two functions in turns for about ``seconds``, and return the median time of each.

    The calls alternate so that a slow moment of the machine slows both functions. Each is called
    at least six times, and its first call does not count.

    Args:
        first: first function to time.
        second: second function to time.
        seconds: wall-clock seconds that all calls together take at least.
        clock: function that returns the time in seconds; default: the wall clock. On a shared
            machine give ``time.process_time``, which counts the CPU time of this process alone.

    Returns:
        tuple: median seconds per call of ``first`` and of ``second``.
    """
    clock = time.perf_counter if clock is None else clock
    turns: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(turns) < 6 or time.perf_counter() - begin < seconds:
        start = clock()
        first()
        between = clock()
        second()
        turns.append((between - start, clock() - between))
    one, other = zip(*turns[1:], strict=True)
    return statistics.median(one), statistics.median(other)
