"""From a density to whole counts: the budget of a model, and each group's first share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from robust_plugin.budget import Budget, Unit, check_density
from robust_plugin.channels import Terms
from robust_plugin.groups import Group
from robust_plugin.masks import kept_count
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
    pattern: tuple[int, int] | None = None,
    least_start: float = 0.0,
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
        pattern: (n, m) of an n:m mask.
        least_start: the densities begin at this share, if the target is below it.

    Raises:
        ValueError: naming the value and what is legal.
    """
    weights = [group.magnitudes for group in groups]
    for group, weight in zip(groups, weights, strict=True):
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weights of {group.name} are not finite, so nothing ranks them.")
    implied = pattern is not None or isinstance(rates, Mapping)
    if implied and density is not None:
        raise ValueError(
            f"density is {density!r}, but a pattern or a dict of rates implies it; omit it."
        )
    if pattern is not None and rates != "uniform":
        raise ValueError(
            f"rates is {rates!r}; a {pattern[0]}:{pattern[1]} pattern fixes the rates."
        )
    names = [group.name for group in groups]
    sizes = [group.size for group in groups]
    costs = [group.cost(multiply_adds) for group in groups] if terms is None else terms.costs
    dense = Budget(tuple(sizes), tuple(costs), 1.0, 0)
    if terms is not None:
        dense = replace(dense, products=terms.products, fixed=terms.fixed)
        costs = [round(price) for price in dense.prices(sizes)]
    if pattern is not None:
        density = pattern[0] / pattern[1]
    elif isinstance(rates, Mapping):
        given = initial_rates(rates, names, weights, costs, 1.0)
        whole = [kept_count(n, k) for n, k in zip(sizes, given, strict=True)]
        density = dense.cost(whole) / dense.full
    target = check_density(density)
    budget = dense.at(target, unit)
    start = max(least_start, target)
    densities = initial_rates(rates, names, weights, costs, start)
    if dense.coupled and unit != "channels" and not implied:
        # A share of the cost is no share of the channels: half of them leave about a quarter.
        scaled = dense.at(start, unit).scaled(densities)
        densities = [count / n for count, n in zip(scaled, sizes, strict=True)]
    each = [kept_count(n, k) for n, k in zip(sizes, densities, strict=True)]
    if pattern is not None:  # n/m is not always the float that gives back n of every m
        each = [size // pattern[1] * pattern[0] for size in sizes]
    if pattern is not None or isinstance(rates, Mapping):
        budget = budget.rescaled(budget.cost(each))
    elif rates != "uniform" or unit == "flops" or (unit == "params" and dense.coupled):
        each = dense.at(start, unit).round(densities)
    return Plan(budget, tuple(densities), tuple(each))
