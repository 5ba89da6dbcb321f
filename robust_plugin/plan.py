"""From a density to whole counts: the budget of a model, and each group's first share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from robust_plugin.blocks import BlockBudget, block_sizes
from robust_plugin.budget import Budget, Unit, check_density
from robust_plugin.channels import Terms
from robust_plugin.groups import Group
from robust_plugin.masks import Pattern
from robust_plugin.patterns import PatternBudget
from robust_plugin.rates import Rates, initial_rates


@dataclass(frozen=True)
class Plan:
    """What a pruner sets out with.

    Attributes:
        budget: what may be kept at the end of the prune phase.
        densities: each group's share at the beginning.
        counts: the whole counts that follow.
    """

    budget: Budget
    densities: tuple[float, ...]
    counts: tuple[int, ...]


def plan(
    groups: Sequence[Group],
    density: float | None,
    *,
    rates: Rates = "uniform",
    unit: Unit = "params",
    multiply_adds: Mapping[tuple[str, str], int] | None = None,
    terms: Terms | None = None,
    pattern: Pattern | None = None,
    least_start: float = 0.0,
    round_to: int = 1,
) -> Plan:
    """Lay out the budget of ``density`` over the groups.

    Args:
        groups: what is pruned.
        density: k, the share of the budget kept; None where a pattern or a dict of rates
            implies it.
        rates: the rule that gives each group its share.
        unit: what the budget counts.
        multiply_adds: for FLOPs, per (layer, parameter).
        terms: where the groups are channels, what the network they leave costs.
        pattern: of an n:m mask; with its n given it fixes every rate, else rates are rounded to
            n of every m.
        least_start: the densities begin at this share, if the target is below it.
        round_to: of channels, keep whole blocks of so many where that divides them.

    Raises:
        TypeError: if round_to is no integer.
        ValueError: naming the value and what is legal.
    """
    steps = block_sizes(groups, round_to)
    weights = [group.magnitudes for group in groups]
    for group, weight in zip(groups, weights, strict=True):
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weights of {group.name} are not finite, so nothing ranks them.")
    n, m = pattern or (None, 1)
    implied = n is not None or isinstance(rates, Mapping)
    if implied and density is not None:
        raise ValueError(
            f"density is {density!r}, but a pattern or a dict of rates implies it; omit it."
        )
    if n is not None and rates != "uniform":
        raise ValueError(
            f"rates is {rates!r}; a {pattern} pattern fixes the rates, n:{m} does not."
        )
    names = [group.name for group in groups]
    sizes = [group.size for group in groups]
    costs = [group.cost(multiply_adds) for group in groups] if terms is None else terms.costs
    dense = Budget(tuple(sizes), tuple(costs), 1.0, 0)
    if terms is not None:
        dense = replace(dense, products=terms.products, fixed=terms.fixed, whole=True)
        costs = [round(price) for price in dense.prices(sizes)]
    if max(steps) > 1:
        dense = BlockBudget(**vars(dense), steps=steps)
    if n is not None:
        density = n / m
    elif isinstance(rates, Mapping):
        given = initial_rates(rates, names, weights, costs, 1.0)
        density = dense.cost(dense.asked(given)) / dense.full
    target = check_density(density)
    budget = dense.at(target, unit)
    if isinstance(budget, BlockBudget) and not implied:
        budget.check()
    start = max(least_start, target)
    densities = initial_rates(rates, names, weights, costs, start)
    first = dense.at(start, unit)
    if dense.coupled and unit != "channels" and not implied:
        # A share of the cost is no share of the channels: half of them leave about a quarter.
        scaled = first.scaled(densities)
        densities = [count / size for count, size in zip(scaled, sizes, strict=True)]
    each = first.asked(densities)
    if n is not None:  # n/m is not always the float that gives back n of every m
        each = [size // m * n for size in sizes]
    if implied:
        first = budget = budget.rescaled(budget.cost(each))
    if pattern is not None and n is None:
        budget = PatternBudget.of_every(m, budget)
        each = PatternBudget.of_every(m, first).round(densities)
    elif not implied and (
        rates != "uniform"
        or unit == "flops"
        or (unit == "params" and dense.coupled)
        or max(steps) > 1
    ):
        each = first.round(densities)
    return Plan(budget, tuple(densities), tuple(each))
