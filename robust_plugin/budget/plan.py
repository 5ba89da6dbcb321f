"""From a density to a budget, and to how many weights or channels each group keeps at first.

A pruner calls ``planner``, which counts the costs of a model once and returns a function from a
density to a ``Plan``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from robust_plugin.budget.budget import Budget, Unit, check_density
from robust_plugin.budget.costs import count_terms, multiply_adds
from robust_plugin.budget.patterns_and_blocks import (
    BlockBudget,
    PatternBudget,
    block_sizes,
    check_blocks,
)
from robust_plugin.budget.quadratic import Terms
from robust_plugin.budget.rates import Rates, erk, initial_rates
from robust_plugin.masks.groups import Group
from robust_plugin.masks.select import Pattern


@dataclass(frozen=True)
class Plan:
    """The budget of a pruner, and the densities and counts of its groups at one moment.

    Attributes:
        budget: budget to meet at the end of pruning.
        densities: density of each group at this moment.
        counts: number of weights or channels that each group keeps at this moment, rounded from
            ``densities``.
    """

    budget: Budget
    densities: tuple[float, ...]
    counts: tuple[int, ...]


class Planner(Protocol):
    """The function ``plan`` for the groups and options of one pruner."""

    def __call__(
        self,
        density: float | None,
        *,
        fall: Callable[[float], float] = ...,
        most: tuple[int, ...] = ...,
    ) -> Plan:
        """Return the plan (see ``plan``)."""


def planner(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    rates: Rates,
    unit: Unit,
    pattern: Pattern | None,
    least_start: float,
    round_to: int,
    example_inputs: Tensor | tuple[Tensor, ...] | None,
) -> Planner:
    """Return ``plan`` with the arguments set that stay the same; costs are counted only once.

    Args:
        model: network without masks.
        groups: groups of the network to prune.
        rates: rule that gives each group its density (see ``plan``).
        unit: what the budget counts: "params", "flops" or "channels".
        pattern: n:m pattern of the masks; None for unstructured masks and for channels.
        least_start: least density to start from, in [0, 1]: if the density to reach is below it,
            the first densities are those of a budget with this density.
        round_to: block size in channels (see ``plan``).
        example_inputs: inputs of one forward pass, a tensor or a tuple of tensors; needed if the
            unit is "flops" or "channels", else None.

    Returns:
        Planner: function of the density to reach (None if rates or pattern imply it), and of
            ``fall`` and ``most`` (see ``plan``), that returns the plan.

    Raises:
        ValueError: if the unit needs a forward pass and ``example_inputs`` is None.
    """
    macs = None
    if unit in ("flops", "channels"):  # ``plan`` refuses units that do not exist
        if example_inputs is None:
            raise ValueError(
                f"budget={unit!r} counts on a forward pass; give example_inputs=x[:1]."
            )
        macs = multiply_adds(model, example_inputs)
    coupled = any(group.coupled for group in groups)
    return partial(
        plan,
        groups,
        rates=rates,
        unit=unit,
        multiply_adds=macs,
        terms=count_terms(model, groups, macs) if coupled else None,
        pattern=pattern,
        least_start=least_start,
        round_to=round_to,
    )


def _at_once(density: float) -> float:
    """Return the density that is to be reached: nothing more is kept on the way."""
    return density


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
    fall: Callable[[float], float] = _at_once,
    most: tuple[int, ...] = (),
) -> Plan:
    """Return the budget of a density, and the densities and counts with which groups start.

    Args:
        groups: groups to prune.
        density: k, share of the cost of all groups that is kept at the end, in (0, 1]; None if a
            pattern or a dict of rates implies it.
        rates: rule that gives each group its density: a name, a function, or a dict from group
            names to densities.
        unit: what the budget counts: "params", "flops" or "channels".
        multiply_adds: for each (layer name, parameter name), the multiply-adds in which one weight
            takes part; None if the budget counts parameters.
        terms: cost of the network that remains, if the groups are coupled channels; else None.
        pattern: n:m pattern of the masks; None for unstructured masks and for channels. A pattern
            with n fixes the density of every group. Without n, densities are rounded to n of m.
        least_start: least density to start from, in [0, 1]: if ``density`` is below it, the first
            densities and counts are those of a budget with this density.
        round_to: block size in channels: a group whose number of channels it divides keeps a
            multiple of it. 1 allows any number of channels.
        fall: function from the density to reach to the density that is kept now, on the way there.
            If rates or pattern imply the density of each group, it is applied to each of these.
            The densities and counts are those of now, and the budget is that of the end.
        most: largest number of entries that each group may keep; empty for all.

    Raises:
        TypeError: if ``round_to`` is not an integer.
        ValueError: if an option has a value that is not legal, two options contradict each other,
            or a weight is not finite.
    """
    steps = block_sizes(groups, round_to)
    if rates in ("erk", erk) and any(group.channels for group in groups):
        raise ValueError(
            "rates is 'erk', which follows the shapes of weights, and a channel has none; for "
            "channels legal are uniform, lamp, global, a function, or a dict of densities."
        )
    names, weights = [group.name for group in groups], [group.magnitudes for group in groups]
    for name, weight in zip(names, weights, strict=True):
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weights of {name} are not finite, so nothing ranks them.")
    _refuse_contradictions(density, rates, pattern)
    dense, costs = _dense_budget(groups, multiply_adds, terms, steps)
    dense = replace(dense, most=most)
    rated = partial(initial_rates, rates, names, weights, costs)
    if _implies_density(rates, pattern):
        return _plan_for_given(dense, rated, unit, pattern, fall)
    target = check_density(density)
    budget = dense.at(target, unit)
    if isinstance(budget, BlockBudget):
        check_blocks(budget)
    start = max(least_start, fall(target))
    densities, first = rated(start), dense.at(start, unit)
    if dense.coupled and unit != "channels":
        # A share of the cost is not the same share of channels: half of the channels of every group
        # leave about a quarter of the cost.
        scaled = first.scaled(densities)
        densities = [count / size for count, size in zip(scaled, first.sizes, strict=True)]
    if pattern is not None:
        budget = PatternBudget.of_every(pattern.m, budget)
        first = PatternBudget.of_every(pattern.m, first)
    # The counts that uniform rates ask for define the total of these budgets, so they need no
    # rounding.
    by_count = unit == "channels" or (unit == "params" and not dense.coupled)
    exact = rates == "uniform" and by_count and pattern is None and max(steps) == 1
    counts = first.asked(densities) if exact else first.round(densities)
    return Plan(budget, tuple(densities), tuple(counts))


def _implies_density(rates: Rates, pattern: Pattern | None) -> bool:
    """Return whether the density of the whole network follows from ``rates`` or ``pattern``."""
    return isinstance(rates, Mapping) or (pattern is not None and pattern.n is not None)


def _refuse_contradictions(density: float | None, rates: Rates, pattern: Pattern | None) -> None:
    """Raise a ValueError if more than one of the three arguments determines how much is kept."""
    if density is not None and _implies_density(rates, pattern):
        raise ValueError(
            f"density is {density!r}, but a pattern or a dict of rates implies it; omit it."
        )
    if pattern is not None and pattern.n is not None and rates != "uniform":
        raise ValueError(
            f"rates is {rates!r}; a {pattern} pattern fixes the rates, n:{pattern.m} does not."
        )


def _dense_budget(
    groups: Sequence[Group],
    multiply_adds: Mapping[tuple[str, str], int] | None,
    terms: Terms | None,
    steps: tuple[int, ...],
) -> tuple[Budget, list[int]]:
    """Return the budget of density 1, and the cost of one entry (weight or channel) per group.

    Args:
        groups: groups to prune.
        multiply_adds: for each (layer name, parameter name), the multiply-adds in which one weight
            takes part; None counts parameters.
        terms: cost of the network that remains, if the groups are coupled channels; else None.
        steps: block size of each group; 1 for groups that may keep any number of entries.
    """
    sizes = tuple(group.size for group in groups)
    if terms is None:
        costs = [group.cost(multiply_adds) for group in groups]
        dense = Budget(sizes, tuple(costs), 1.0, 0)
    else:
        dense = Budget(sizes, terms.costs, 1.0, 0, terms.products, terms.fixed, whole=True)
        costs = [round(price) for price in dense.prices(sizes)]
    return (BlockBudget(**vars(dense), steps=steps) if max(steps) > 1 else dense), costs


def _plan_for_given(
    dense: Budget,
    rated: Callable[[float], list[float]],
    unit: Unit,
    pattern: Pattern | None,
    fall: Callable[[float], float],
) -> Plan:
    """Return the plan for given layer densities; its budget allows exactly what they cost.

    Args:
        dense: budget of density 1.
        rated: function from the density of the network to the density of each group; given
            densities do not depend on its argument.
        unit: what the budget counts: "params", "flops" or "channels".
        pattern: a pattern with n, such as 2:4, gives the densities itself; to a pattern without n
            they are rounded; None does not round them to a pattern.
        fall: function from the density of a group at the end to that of now. A pattern keeps the
            next larger n of m on the way.
    """
    if pattern is not None and pattern.n is not None:
        m, density = pattern.m, pattern.n / pattern.m
        # Whole numbers: the float n / m times the size may round to another count.
        at_end = [size // m * pattern.n for size in dense.sizes]
        n = math.ceil(fall(density) * m - 1e-9)
        densities, counts = rated(n / m), [size // m * n for size in dense.sizes]
        budget = dense.at(density, unit).rescaled(dense.cost(at_end))
        return Plan(budget, tuple(densities), tuple(counts))
    given = rated(1.0)
    at_end, densities = dense.asked(given), [fall(k) for k in given]
    counts = dense.asked(densities)
    total = dense.cost(at_end)
    budget = dense.at(total / dense.full, unit).rescaled(total)
    if pattern is not None:
        budget = PatternBudget.of_every(pattern.m, budget)
        counts = budget.rescaled(max(total, dense.cost(counts))).round(densities)
    return Plan(budget, tuple(densities), tuple(counts))
