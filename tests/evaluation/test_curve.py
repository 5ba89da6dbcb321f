"""Security curves against counting by hand."""

import math
import random
import statistics

import pytest

from robust_plugin import ThreatModel
from robust_plugin.evaluation.curve import SecurityCurve, around
from robust_plugin.stats import wilson_interval


@pytest.fixture
def curve():
    draw = random.Random(0)
    found = [draw.uniform(0.001, 0.2) for _ in range(30)]
    return SecurityCurve("Linf", (0.0, *found, 0.0, math.inf, math.inf, math.inf))


def test_accuracy_counts_points_whose_distance_is_beyond_the_radius(curve):
    for eps in (0.0, 0.05, "8/255", curve.distances[3], 0.3):
        radius = eval(eps) if isinstance(eps, str) else eps
        robust = sum(1 for d in curve.distances if d != 0 and d > radius)
        assert curve.accuracy(eps) == robust / 35
        assert curve.interval(eps) == wilson_interval(robust, 35)
    assert curve.median == statistics.median(curve.distances)


def test_steps_are_where_the_accuracy_falls(curve):
    steps = curve.steps()
    assert [radius for radius, _ in steps] == sorted(d for d in curve.distances if d < math.inf)
    for radius, accuracy in steps[2:]:  # the first two are the misclassified points
        assert curve.accuracy(radius) == pytest.approx(accuracy)


def test_the_table_has_one_line_per_radius(curve):
    title, *lines = curve.table(["4/255", 0.1]).splitlines()
    assert title == "robust accuracy against eps, Linf, n=35"
    assert [line.split()[0] for line in lines] == ["4/255", "0.1"]
    assert float(lines[1].split()[3]) == pytest.approx(100 * curve.accuracy(0.1), abs=0.05)


def test_radii_around_eps_are_its_multiples():
    for eps in (0.5, "8/255"):
        threat = ThreatModel("L2", eps)
        values = [ThreatModel("L2", each).eps / threat.eps for each in around(threat)]
        assert values == pytest.approx([0.25, 0.5, 1, 1.5, 2, 4], rel=1e-5)
