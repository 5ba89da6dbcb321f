"""From a density to whole counts: the budget of a model, and each group's first share of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from robust_plugin.budget.budget import Budget, Unit, check_density
from robust_plugin.budget.costs import Terms, count_terms, multiply_adds
from robust_plugin.budget.rates import Rates, erk, initial_rates
from robust_plugin.budget.stepped import BlockBudget, PatternBudget, block_sizes
from robust_plugin.masks.groups import Group
from robust_plugin.masks.select import Pattern


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
) -> Callable[[float | None], Plan]:
    """Return density -> ``plan`` over groups of a model, whose costs are counted once.

    Args:
        model: without masks.
        groups: what is pruned of it.
        rates: see ``plan``, as the options below.
        unit: what the budget counts.
        pattern: of an n:m mask.
        least_start: the least share to begin at.
        round_to: of channels.
        example_inputs: what one forward pass takes, for FLOPs and channels.

    Raises:
        ValueError: if the unit counts on a forward pass and there are no inputs for it.
    """
    macs = None
    if unit in ("flops", "channels"):  # the plan says which units there are
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
    if rates in ("erk", erk) and any(group.channels for group in groups):
        raise ValueError(
            "rates is 'erk', which follows the shapes of weights, and a channel has none; for "
            "channels legal are uniform, lamp, global, a function, or a dict of densities."
        )
    names, weights = [group.name for group in groups], [group.magnitudes for group in groups]
    for name, weight in zip(names, weights, strict=True):
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weights of {name} are not finite, so nothing ranks them.")
    _refuse_twice(density, rates, pattern)
    dense, costs = _dense_budget(groups, multiply_adds, terms, steps)
    rated = partial(initial_rates, rates, names, weights, costs)
    if _implied(rates, pattern):
        return _given(dense, rated, unit, pattern)
    target = check_density(density)
    budget = dense.at(target, unit)
    if isinstance(budget, BlockBudget):
        budget.check()
    start = max(least_start, target)
    densities, first = rated(start), dense.at(start, unit)
    if dense.coupled and unit != "channels":
        # A share of the cost is no share of the channels: half of them leave about a quarter.
        scaled = first.scaled(densities)
        densities = [count / size for count, size in zip(scaled, first.sizes, strict=True)]
    if pattern is not None:
        budget = PatternBudget.of_every(pattern.m, budget)
        first = PatternBudget.of_every(pattern.m, first)
    # At uniform rates the counts they ask for are what defines these budgets.
    by_count = unit == "channels" or (unit == "params" and not dense.coupled)
    exact = rates == "uniform" and by_count and pattern is None and max(steps) == 1
    counts = first.asked(densities) if exact else first.round(densities)
    return Plan(budget, tuple(densities), tuple(counts))


def _implied(rates: Rates, pattern: Pattern | None) -> bool:
    """Whether the density follows from the rest."""
    return isinstance(rates, Mapping) or (pattern is not None and pattern.n is not None)


def _refuse_twice(density: float | None, rates: Rates, pattern: Pattern | None) -> None:
    """Raise a ValueError if two of them say what is kept."""
    if density is not None and _implied(rates, pattern):
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
    """Return the budget of everything, and what one entry of each group costs there."""
    sizes = tuple(group.size for group in groups)
    if terms is None:
        costs = [group.cost(multiply_adds) for group in groups]
        dense = Budget(sizes, tuple(costs), 1.0, 0)
    else:
        dense = Budget(sizes, terms.costs, 1.0, 0, terms.products, terms.fixed, whole=True)
        costs = [round(price) for price in dense.prices(sizes)]
    return (BlockBudget(**vars(dense), steps=steps) if max(steps) > 1 else dense), costs


def _given(
    dense: Budget, rated: Callable[[float], list[float]], unit: Unit, pattern: Pattern | None
) -> Plan:
    """Return the plan where rates are given, whose cost is the budget.

    Args:
        dense: the budget of everything.
        rated: a share -> each group's density.
        unit: what the budget counts.
        pattern: fixed, or beside a dict of rates n:m.
    """
    if pattern is not None and pattern.n is not None:
        density = pattern.n / pattern.m
        densities = rated(density)
        # n/m is not always the float that gives back n of every m.
        counts = [size // pattern.m * pattern.n for size in dense.sizes]
    else:
        densities = rated(1.0)
        counts = dense.asked(densities)
        density = dense.cost(counts) / dense.full
    budget = dense.at(density, unit).rescaled(dense.cost(counts))
    if pattern is not None and pattern.n is None:
        budget = PatternBudget.of_every(pattern.m, budget)
        counts = budget.round(densities)
    return Plan(budget, tuple(densities), tuple(counts))
