"""Wilson's interval for one accuracy, and Tango's interval and McNemar's test for two models.

Tango's interval and McNemar's test are paired: both models are judged on the same test points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.values import is_whole

# The 97.5 % quantile of the normal distribution: two-sided intervals of 95 %.
_Z = 1.959963984540054


@explain_wrong_calls
def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the two ends of the Wilson 95 % score interval of the share successes / n.

    With p = successes / n the interval is
    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927.

    Args:
        successes: number of points with the property of interest (correctly classified, say), 0 to
            ``n``.
        n: number of all points; for 0 the interval is (0, 1).

    Raises:
        ValueError: for other numbers.

    >>> tuple(round(end, 3) for end in wilson_interval(45, 100))
    (0.356, 0.548)
    """
    if not (is_whole(successes) and is_whole(n) and 0 <= successes <= n):
        raise ValueError(
            f"successes is {successes!r} of n = {n!r} points; legal: whole numbers, 0 <= successes "
            "<= n. A share is successes / n."
        )
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, _Z * _Z
    centre = p + z2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At p = 0 and p = 1 the end is set exactly: rounding could put p outside of its own interval.
    low = (centre - half) / (1 + z2 / n) if successes else 0.0
    high = (centre + half) / (1 + z2 / n) if successes < n else 1.0
    return low, high


def paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Return the two ends of Tango's 95 % score interval of a difference of paired proportions.

    The difference is (b - c) / n, with b = ``only_first`` and c = ``only_second``. The interval
    holds all d with ``|b - c - n d|`` <= z sqrt(n (2 q + d (1 - d))), where q is the most likely
    probability of a point of c if the difference is d:
    q = (sqrt(B^2 + 8 n c d (1 - d)) - B) / 4n, with B = (2n - b + c) d - b - c (Tango 1998,
    Statistics in Medicine 17, 891-908). At d = 0 it is McNemar's test without continuity
    correction.

    Args:
        only_first: number of points where the first model alone is right.
        only_second: number of points where the second model alone is right.
        n: number of all points; for 0 the interval is (-1, 1).

    Raises:
        ValueError: for counts below 0, or above n together.

    >>> tuple(round(end, 3) for end in paired_interval(1, 7, 21))
    (-0.517, -0.026)
    """
    if min(only_first, only_second) < 0 or only_first + only_second > n:
        raise ValueError(
            f"{only_first} and {only_second} of {n} points; legal: counts of 0 or more that add "
            "up to at most the number of points."
        )
    if n == 0:
        return -1.0, 1.0
    return -_upper_end(only_second, only_first, n), _upper_end(only_first, only_second, n)


def _upper_end(b: int, c: int, n: int) -> float:
    """Return the upper end of Tango's interval, by bisection between (b - c) / n and 1."""
    low, high = (b - c) / n, 1.0
    if c == 0 and b == n:
        return 1.0
    while True:
        d = (low + high) / 2
        if d in (low, high):  # neighbouring floating-point numbers
            return d
        linear = (2 * n - b + c) * d - b - c
        spread = d * (1 - d)
        q = (math.sqrt(max(0.0, linear * linear + 8 * n * c * spread)) - linear) / (4 * n)
        if n * d - b + c <= _Z * math.sqrt(max(0.0, n * (2 * q + spread))):
            low = d
        else:
            high = d


@explain_wrong_calls
def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the exact two-sided p-value of the hypothesis that two classifiers are equally good.

    Let b be the number of points where only the first classifier is right, and c the number where
    only the second is right. The p-value is 2 P(Binomial(b + c, 1/2) <= min(b, c)), at most 1
    (McNemar 1947, exact form).

    Args:
        first: for each point, whether the first classifier is right.
        second: for each point, whether the second classifier is right, in the same order.

    Raises:
        ValueError: if ``first`` and ``second`` have different lengths.

    >>> mcnemar([True] * 6, [False] * 6)
    0.03125
    """
    if not (isinstance(first, Sequence) and isinstance(second, Sequence)):
        kinds = f"a {type(first).__name__} and a {type(second).__name__}"
        raise TypeError(
            f"got {kinds}; give for each point whether it is right, as report.flags['clean']."
        )
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} points against {len(second)}; compare on the same test points."
        )
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return sign_test(only_first, only_second)


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of the hypothesis that wins and losses are equally likely.

    It is 2 P(Binomial(wins + losses, 1/2) <= min(wins, losses)), at most 1. McNemar's test is this
    test on the points where only one of two classifiers is right.

    >>> sign_test(6, 0)
    0.03125
    """
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**n))
