"""Deployment on a CPU: CSR products where they were timed to be faster than the dense layers."""

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
    """Call two functions in turns for about ``seconds``; return the median time of each.

    At least five turns, after one that does not count. ``time.process_time`` as the clock, instead
    of the wall's, counts the work of one thread, whatever else a shared machine does.
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
