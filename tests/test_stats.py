"""Wilson's and Tango's intervals and McNemar's test, against scipy and published figures."""

import math
import random

import pytest
import scipy.optimize
import scipy.stats

from robust_plugin import mcnemar, wilson_interval
from robust_plugin.stats import paired_interval

Z2 = scipy.stats.norm.ppf(0.975) ** 2


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


def test_the_paired_interval_is_the_published_one_and_has_its_closed_form():
    # Airway hyper-responsiveness before and after stem cell transplantation: Fagerland, Lydersen
    # and Laake 2014, Statistics in Medicine 33, 2850-2875, Tango's interval.
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    for n in (7, 128, 10_000):
        end = Z2 / (n + Z2)  # where the models agree everywhere
        assert paired_interval(0, 0, n) == pytest.approx((-end, end), abs=1e-12)
        # where only one of them is right everywhere
        assert paired_interval(n, 0, n) == pytest.approx(((n - Z2) / (n + Z2), 1), abs=1e-12)
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)
    for wrong in ((-1, 0, 5), (3, 3, 5)):
        with pytest.raises(ValueError, match="legal: counts of 0 or more"):
            paired_interval(*wrong)


def score(b, c, n, d):
    """The square of the score statistic at a difference, its likelihood maximised numerically."""

    def loss(q):
        cells = ((b, q + d), (c, q), (n - b - c, 1 - 2 * q - d))
        return -sum(k * math.log(p) for k, p in cells if k)

    low, high = max(0.0, -d), (1 - d) / 2
    q = scipy.optimize.minimize_scalar(
        loss, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-12}
    ).x
    return (b - c - n * d) ** 2 / (n * (2 * q + d - d * d))


def test_at_its_ends_the_score_statistic_is_its_quantile():
    draw = random.Random(0)
    for _ in range(40):
        n = draw.randint(10, 400)
        b, c = draw.randint(1, n // 3), draw.randint(1, n // 3)
        low, high = paired_interval(b, c, n)
        assert low < (b - c) / n < high
        assert score(b, c, n, low) == pytest.approx(Z2, rel=1e-4)
        assert score(b, c, n, high) == pytest.approx(Z2, rel=1e-4)
        assert paired_interval(c, b, n) == (-high, -low)
        # Zero lies outside where McNemar's test without continuity correction rejects.
        assert (low > 0 or high < 0) == ((b - c) ** 2 / (b + c) > Z2)


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.25, 0.1), (0.05, 0.02), (0.4, 0.2)])
def test_the_paired_interval_covers_the_difference_in_95_of_100_samples(shares):
    """All samples of 60 points, each with its probability."""
    n, (p, q) = 60, shares
    distribution = scipy.stats.multinomial(n, [p, q, 1 - p - q])
    pairs = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    weights = distribution.pmf([[b, c, n - b - c] for b, c in pairs])
    covered = 0.0
    for (b, c), weight in zip(pairs, weights, strict=True):
        if weight > 1e-9:
            low, high = paired_interval(b, c, n)
            covered += weight * (low <= p - q <= high)
    assert 0.935 < covered < 0.97
