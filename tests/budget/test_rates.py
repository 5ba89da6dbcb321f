import random

import pytest
import torch

from robust_plugin.budget.rates import bisect, erk, global_magnitude, initial_rates, lamp, uniform

SHAPES = [(8, 1, 3, 3), (16, 8, 3, 3), (64, 16, 1, 1), (10, 256), (3, 4)]


@pytest.fixture
def weights():
    return [torch.randn(shape) * (i + 1) for i, shape in enumerate(SHAPES)]


def erk_by_rounds(shapes, density):
    """RigL's way: whoever would exceed 1 is dense, and the others share the rest, until none."""
    sizes = [torch.Size(s).numel() for s in shapes]
    raw = [sum(s) / n for s, n in zip(shapes, sizes, strict=True)]
    dense = set()
    while True:
        left = density * sum(sizes) - sum(sizes[i] for i in dense)
        factor = left / sum(raw[i] * sizes[i] for i in range(len(sizes)) if i not in dense)
        over = {i for i in range(len(sizes)) if i not in dense and factor * raw[i] > 1}
        if not over:
            return [1.0 if i in dense else factor * raw[i] for i in range(len(sizes))]
        dense |= over


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2, 0.1, 0.05, 0.01])
def test_erk_equals_the_iterative_version(weights, density):
    rates = erk(weights, [1] * 5, density)
    assert rates == pytest.approx(erk_by_rounds(SHAPES, density), rel=1e-9)
    assert sum(r * w.numel() for r, w in zip(rates, weights, strict=True)) == pytest.approx(
        density * sum(w.numel() for w in weights)
    )


def lamp_by_loops(weights):
    scores = []
    for layer, weight in enumerate(weights):
        squares = sorted((float(w) ** 2 for w in weight.flatten().double()), reverse=True)
        total = 0.0
        for square in squares:  # from the largest: the denominator is all that is not smaller
            total += square
            scores.append((square / total, layer))
    return scores


@pytest.mark.parametrize("density", [0.9, 0.5, 0.1, 0.05, 0.01, 0.003])
@pytest.mark.parametrize("rule", ["lamp", "global"])
def test_one_threshold_rules_equal_loops(weights, density, rule):
    if rule == "lamp":
        scores, function = lamp_by_loops(weights), lamp
    else:
        scores = [(abs(float(v)), i) for i, w in enumerate(weights) for v in w.flatten()]
        function = global_magnitude
    best = sorted(scores, reverse=True)[: int(density * len(scores) + 1e-9)]
    counts = [max(1, sum(layer == i for _, layer in best)) for i in range(5)]
    rates = function(weights, [1] * 5, density)
    assert [round(r * w.numel()) for r, w in zip(rates, weights, strict=True)] == counts


def test_lamp_is_blind_to_a_layers_scale_and_global_is_not(weights):
    scaled = [w * 10.0**-i for i, w in enumerate(weights)]
    assert lamp(scaled, [1] * 5, 0.1) == lamp(weights, [1] * 5, 0.1)
    assert global_magnitude(scaled, [1] * 5, 0.1) != global_magnitude(weights, [1] * 5, 0.1)


@pytest.mark.parametrize("rule", [uniform, erk, lamp, global_magnitude])
@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_costs_count(weights, rule, density):
    costs = [64, 16, 16, 1, 1]
    spent = lambda rates: sum(  # noqa: E731
        c * r * w.numel() for c, r, w in zip(costs, rates, weights, strict=True)
    )
    target = density * spent([1] * 5)
    # A threshold stops at the entry that does not fit; the others are continuous.
    slack = max(costs) if rule in (lamp, global_magnitude) else 1e-6 * target
    rates = rule(weights, costs, density)
    # ... and a layer that it would empty keeps one entry all the same.
    single = [round(r * w.numel()) == 1 for r, w in zip(rates, weights, strict=True)]
    floor = sum(c for c, one in zip(costs, single, strict=True) if one)
    assert target - slack <= spent(rates) <= target * (1 + 1e-6) + floor


def test_zero_weights_do_not_break_lamp():
    rates = lamp([torch.zeros(4, 4), torch.randn(4, 4)], [1, 1], 0.5)
    assert all(0 < r <= 1 for r in rates)


def test_given_rates_and_bad_ones(weights):
    names = list("abcde")
    given = {"e": 1.0, "d": 0.1, "c": 0.2, "b": 0.3, "a": 0.4}
    assert initial_rates(given, names, weights, [1] * 5, 0.5) == [0.4, 0.3, 0.2, 0.1, 1.0]
    assert initial_rates(lambda w, c, k: [k] * 5, names, weights, [1] * 5, 0.3) == [0.3] * 5
    for rates, says in [
        ("erdos", "'erdos'; legal: uniform, erk, lamp, global"),
        ({"a": 0.1}, r"lack \['b', 'c', 'd', 'e'\]"),
        ({**given, "z": 0.1}, r"unknown \['z'\]; legal: \['a', 'b', 'c', 'd', 'e'\]"),
        ({**given, "b": 0.0}, "rate of b is 0.0; legal: 0 < rate <= 1"),
        ({**given, "b": 1.1}, "rate of b is 1.1"),
        ({**given, "b": float("nan")}, "rate of b is nan"),
        (lambda w, c, k: [2.0] * 5, "rate of a is 2.0"),
    ]:
        with pytest.raises(ValueError, match=says):
            initial_rates(rates, names, weights, [1] * 5, 0.5)


def test_bisect():
    draw = random.Random(0)
    for _ in range(50):
        root = draw.uniform(-3, 3)
        assert bisect(lambda v, r=root: (v - r) ** 3, 0.0, low=-4, high=4) == pytest.approx(root)
    assert bisect(lambda v: v, 9.0, low=0, high=1) == 1.0
    assert bisect(lambda v: v, -9.0, low=0, high=1) < 1e-25
