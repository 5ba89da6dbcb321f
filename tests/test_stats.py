"""Wilson's interval and McNemar's test, against scipy."""

import random

import pytest
import scipy.stats

from robust_plugin import mcnemar, wilson_interval


def test_wilson_equals_scipy_and_the_quadratic():
    draw = random.Random(0)
    cases = [(0, 1), (1, 1), (0, 1000), (1000, 1000), (4500, 10_000)]
    cases += [(draw.randint(0, n), n) for n in (draw.randint(1, 3000) for _ in range(100))]
    for k, n in cases:
        low, high = wilson_interval(k, n)
        wanted = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        for end in (low, high):  # where |p - end| = z sqrt(end (1 - end) / n)
            assert (k / n - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in range(1, 200):
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0


def test_mcnemar_equals_scipy():
    draw = random.Random(0)
    for _ in range(60):
        n, share = draw.randint(1, 400), draw.random()
        first = [draw.random() < 0.7 for _ in range(n)]
        second = [a if draw.random() < share else draw.random() < 0.5 for a in first]
        b = sum(x and not y for x, y in zip(first, second, strict=True))
        c = sum(y and not x for x, y in zip(first, second, strict=True))
        wanted = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)
        assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar([True] * 5000, [False] * 5000) == pytest.approx(0.0, abs=1e-300)
    with pytest.raises(ValueError, match="2 points against 3"):
        mcnemar([True] * 2, [True] * 3)
