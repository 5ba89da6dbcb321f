"""From a density or rates to whole counts, and which options contradict each other."""

import pytest
import torch
from pattern_networks import counts_of_every, small  # noqa: E402
from torch import nn

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, weight_groups
from robust_plugin.budget.plan import plan, planner
from robust_plugin.masks.select import parse_pattern
from robust_plugin.pruning.pruner import Pruner

SIZES = (72, 288, 1280)


def last_layer_dense(weights, costs, density):
    """A rule of a user: the last layer at twice the density of the others."""
    return [density] * (len(weights) - 1) + [min(1.0, 2 * density)]


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01, 0.001])
def test_uniform_counts_are_those_of_every_layer_alone(cnn, density):
    found = plan(weight_groups(cnn()), density)
    assert found.densities == (density,) * 3
    assert found.counts == tuple(max(1, n - int((1 - density) * n)) for n in SIZES)
    assert found.budget.total == sum(found.counts)


def test_the_first_counts_are_those_of_the_start_and_the_budget_that_of_the_target(cnn):
    found = plan(weight_groups(cnn()), 0.01, least_start=0.1)
    assert found.counts == plan(weight_groups(cnn()), 0.1).counts
    assert found.budget == plan(weight_groups(cnn()), 0.01).budget
    assert plan(weight_groups(cnn()), 0.5, least_start=0.1) == plan(weight_groups(cnn()), 0.5)


def test_flops_are_counted_once_on_the_example(cnn, batch):
    model = cnn()
    groups = weight_groups(model)
    options = {"rates": "erk", "unit": "flops", "pattern": None, "least_start": 0.0, "round_to": 1}
    laid_out = planner(model, groups, example_inputs=batch[0][:1], **options)
    macs = {("0", "weight"): 64, ("3", "weight"): 16, ("6", "weight"): 1}
    for density in (0.5, 0.1):
        found = laid_out(density)
        assert found == plan(groups, density, rates="erk", unit="flops", multiply_adds=macs)
        assert found.budget.costs == (64, 16, 1)
    with pytest.raises(ValueError, match="budget='flops' counts on a forward pass"):
        planner(model, groups, example_inputs=None, **options)


def test_given_rates_are_the_budget(cnn):
    rates = {"0.weight": 0.5, "3.weight": 0.25, "6.weight": 0.1}
    found = plan(weight_groups(cnn()), None, rates=rates)
    assert found.counts == (36, 72, 128) and found.densities == tuple(rates.values())
    assert found.budget.total == 36 + 72 + 128
    with pytest.raises(ValueError, match="a pattern or a dict of rates implies it; omit it"):
        plan(weight_groups(cnn()), 0.1, rates=rates)
    with pytest.raises(ValueError, match="a 2:4 pattern fixes the rates"):
        plan(weight_groups(cnn()), None, rates="erk", pattern=parse_pattern("2:4"))


def halfway(density):
    """The density on the way there, as a geometric schedule has it."""
    return density**0.5


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("unit", ["params", "flops"])
@pytest.mark.parametrize("rates", ["uniform", "erk", "lamp", "global", last_layer_dense])
def test_on_the_way_counts_are_those_of_now_and_the_budget_that_of_the_end(
    cnn, rates, unit, density
):
    macs = {("0", "weight"): 64, ("3", "weight"): 16, ("6", "weight"): 1}
    options = {"rates": rates, "unit": unit, "multiply_adds": macs if unit == "flops" else None}
    groups = weight_groups(cnn())
    found = plan(groups, density, fall=halfway, **options)
    now, end = plan(groups, halfway(density), **options), plan(groups, density, **options)
    assert (found.counts, found.densities) == (now.counts, now.densities)
    assert found.budget == end.budget
    # What is pruned already limits every layer, and the others keep more instead.
    most = tuple(max(1, (n + count) // 2) for n, count in zip(SIZES, now.counts, strict=True))
    limited = plan(groups, density, fall=halfway, most=most, **options)
    assert all(n <= limit for n, limit in zip(limited.counts, most, strict=True))
    assert limited.budget.most == most and limited.budget.total == end.budget.total
    if unit == "params":
        uniform = sum(max(1, n - int((1 - halfway(density)) * n)) for n in SIZES)
        assert sum(now.counts) == sum(limited.counts) == uniform
    tight = tuple(max(1, count - 1) for count in now.counts)
    assert plan(groups, density, fall=halfway, most=tight, **options).counts == tight


def test_given_rates_fall_each_on_its_own_way(cnn):
    rates = {"0.weight": 1.0, "3.weight": 0.25, "6.weight": 0.04}
    found = plan(weight_groups(cnn()), None, rates=rates, fall=halfway)
    assert found.densities == (1.0, 0.5, 0.2) and found.counts == (72, 144, 256)
    assert found.budget.total == 72 + 72 + (1280 - int(0.96 * 1280))
    most = (72, 100, 1280)
    assert plan(weight_groups(cnn()), None, rates=rates, fall=halfway, most=most).counts == (
        *(72, 100, 256),
    )


@pytest.mark.parametrize(("n", "m", "now"), [(1, 4, 2), (2, 4, 3), (1, 2, 2), (4, 8, 6), (3, 3, 3)])
def test_a_pattern_keeps_the_next_larger_n_on_the_way(n, m, now):
    """sqrt(1/4) = 2/4; sqrt(2/4) = 2.83/4, and so on."""
    groups = weight_groups(nn.Sequential(nn.Linear(3 * m, 5), nn.Linear(m, 7)))
    sizes = (15 * m, 7 * m)
    found = plan(groups, None, pattern=parse_pattern(f"{n}:{m}"), fall=halfway)
    assert found.counts == tuple(size // m * now for size in sizes)
    assert found.budget.total == sum(sizes) // m * n


@pytest.mark.parametrize("rates", ["uniform", "erk", "lamp", "global"])
def test_a_pattern_with_n_per_layer_stays_within_the_budget_of_now(rates):
    groups = weight_groups(small(), exclude=["0"])
    free = plan(groups, 0.3, rates=rates, pattern=parse_pattern("n:4"), fall=halfway)
    sizes = [group.size for group in groups]
    assert all(4 * count % size == 0 for count, size in zip(free.counts, sizes, strict=True))
    assert sum(free.counts) <= halfway(0.3) * sum(sizes)
    assert free.budget.total == sum(max(1, n - int(0.7 * n)) for n in sizes)
    most = (sizes[0] // 2, sizes[1] // 4, sizes[2])
    found = plan(groups, 0.3, rates=rates, pattern=parse_pattern("n:4"), fall=halfway, most=most)
    assert all(n <= limit for n, limit in zip(found.counts, most, strict=True))


def test_weights_that_are_not_finite_are_named(cnn):
    model = cnn()
    model[3].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="the weights of 3.weight are not finite"):
        plan(weight_groups(model), 0.5)


def test_whole_rates_are_kept_as_they_are():
    """Rates given by layer that are patterns already come out as those patterns."""
    rates = {"0.weight": 1.0, "2.weight": 0.25, "4.weight": 0.5}
    model = nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    pruner = MagnitudePruner(model, rates=rates, pattern="n:4")
    assert pruner.densities == rates
    assert [counts_of_every(model[i].weight, 4) for i in (0, 2, 4)] == [{4}, {1}, {2}]
    assert pruner.kept == pruner.budget.total == 96 + 48 + 24


@pytest.mark.parametrize("rates", ["uniform", "erk", "lamp", "global"])
def test_every_rule_of_rates_is_rounded_to_the_pattern(rates):
    model = small()
    pruner = HydraPruner(model, 0.4, rates=rates, pattern="n:4")
    assert pruner.kept <= 0.4 * 9600
    by_layer = [counts_of_every(model[i].weight, 4) for i in (3, 6, 8)]
    assert all(len(counts) == 1 for counts in by_layer)
    if rates == "erk":  # the small layer is the densest
        assert by_layer[2] == {4}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: HarpPruner(m, 0.5, pattern="2:4"), "a 2:4 pattern fixes the rates"),
        (lambda m: HarpPruner(m, 0.2, pattern="n:4"), "density is 0.2.*legal is 1/4 to 1"),
        (lambda m: HarpPruner(m, pattern="n:4"), "density is None"),
        (lambda m: HarpPruner(m, 0.5, pattern="n:0"), "pattern is 'n:0'; legal"),
        (
            lambda m: HarpPruner(m, 0.5, pattern="n:4", control="hinge"),
            "control is 'hinge'.*only 'held'",
        ),
        (lambda m: Pruner(m, 0.5, pattern="n:1000"), "n:1000 fits no layer"),
    ],
)
def test_what_is_refused(build, message):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        build(model)
    assert before.keys() == model.state_dict().keys()
