"""Wilson's interval for one accuracy, and McNemar's test for two models on the same test points."""

from __future__ import annotations

import math
from collections.abc import Sequence

# The 97.5 % quantile of the normal distribution: two-sided intervals of 95 %.
_Z = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the two ends of the Wilson 95 % score interval of the share successes / n.

    With p = successes / n the interval is
    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927.

    Args:
        successes: number of points with the property of interest (correctly classified, say), 0 to
            ``n``.
        n: number of all points; for 0 the interval is (0, 1).

    >>> tuple(round(end, 3) for end in wilson_interval(45, 100))
    (0.356, 0.548)
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, _Z * _Z
    centre = p + z2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At p = 0 and p = 1 the end is set exactly: rounding could put p outside of its own interval.
    low = (centre - half) / (1 + z2 / n) if successes else 0.0
    high = (centre + half) / (1 + z2 / n) if successes < n else 1.0
    return low, high


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
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} points against {len(second)}; compare on the same test points."
        )
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**n))
