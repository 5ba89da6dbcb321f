"""Rules for fixed rates: the density of each layer, for one budget over all layers.

Every rule is a function of the magnitudes of the groups, the cost of one entry of each group and
the share of the budget. It returns one density k_l per group with
sum_l cost_l k_l n_l = density * sum_l cost_l n_l.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

RateName = Literal["uniform", "erk", "lamp", "global"]
Rates = (
    RateName
    | Callable[[Sequence[Tensor], Sequence[float], float], list[float]]
    | Mapping[str, float]
)


def uniform(weights: Sequence[Tensor], costs: Sequence[float], density: float) -> list[float]:
    """Return the same density for every group: k_l = k."""
    return [density] * len(weights)


def erk(weights: Sequence[Tensor], costs: Sequence[float], density: float) -> list[float]:
    """Return the Erdos-Renyi-Kernel rates: k_l proportional to sum(shape) / prod(shape), at most 1.

    Evci et al. 2020 (RigL), section 3. Layers whose rate would exceed 1 stay dense, and the other
    layers share what is left.
    """
    sizes = [w.numel() for w in weights]
    raw = [sum(w.shape) / n for w, n in zip(weights, sizes, strict=True)]
    target = density * sum(c * n for c, n in zip(costs, sizes, strict=True))

    def spent(factor: float) -> float:
        each = zip(raw, costs, sizes, strict=True)
        return sum(c * n * min(1.0, factor * r) for r, c, n in each)

    factor = bisect(spent, target, low=0.0, high=1 / min(raw))
    return [min(1.0, factor * r) for r in raw]


def lamp(weights: Sequence[Tensor], costs: Sequence[float], density: float) -> list[float]:
    """Return the rates of one threshold over all layers on LAMP scores.

    The score is w_i^2 / sum_{j: ``|w_j| >= |w_i|``} w_j^2 (Lee et al. 2021, equation 4). The
    largest weight of a layer scores 1, so no layer loses all its weights.
    """

    def score(weight: Tensor) -> Tensor:
        squares = weight.detach().double().square().flatten().sort().values
        at_least = squares.flip(0).cumsum(0).flip(0)
        return squares / at_least.clamp(min=1e-300)

    return _threshold([score(w) for w in weights], costs, density)


def global_magnitude(
    weights: Sequence[Tensor], costs: Sequence[float], density: float
) -> list[float]:
    """Return the rates of one threshold over all layers on ``|w|``."""
    return _threshold([w.detach().double().abs().flatten() for w in weights], costs, density)


def _threshold(scores: Sequence[Tensor], costs: Sequence[float], density: float) -> list[float]:
    """Return the densities that remain if the scores above one threshold are kept.

    The threshold is as low as the budget allows. Every group keeps at least one entry.
    """
    per_score = torch.cat([torch.full_like(s, c) for s, c in zip(scores, costs, strict=True)])
    owner = torch.cat([torch.full_like(s, i).long() for i, s in enumerate(scores)])
    order = torch.cat(list(scores)).argsort(descending=True, stable=True)
    spent = per_score[order].cumsum(0)
    kept = owner[order][spent <= density * spent[-1] * (1 + 1e-12)]
    counts = kept.bincount(minlength=len(scores)).tolist()
    return [max(1, c) / s.numel() for c, s in zip(counts, scores, strict=True)]


_FUNCTIONS: dict[str, Callable[[Sequence[Tensor], Sequence[float], float], list[float]]] = {
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "global": global_magnitude,
}


def initial_rates(
    rates: Rates,
    names: Sequence[str],
    weights: Sequence[Tensor],
    costs: Sequence[float],
    density: float,
) -> list[float]:
    """Return one density per group, each in (0, 1].

    Args:
        rates: name of a rule, a function with the arguments of the rules in this file, or a dict
            from group names to densities.
        names: names of the groups.
        weights: weights of each group, or magnitudes of its channels.
        costs: cost of one entry of each group.
        density: share of the budget, in (0, 1]; not used if ``rates`` is a dict.

    Raises:
        ValueError: if the rule is unknown, the names of a dict are not those of the groups, or a
            density is outside of (0, 1].
    """
    if isinstance(rates, str) and rates in _FUNCTIONS:
        found = _FUNCTIONS[rates](weights, costs, density)
    elif isinstance(rates, Mapping):
        if set(rates) != set(names):
            missing, extra = sorted(set(names) - set(rates)), sorted(set(rates) - set(names))
            raise ValueError(f"rates lack {missing} and hold unknown {extra}; legal: {list(names)}")
        found = [rates[name] for name in names]
    elif callable(rates):
        found = rates(weights, costs, density)
    else:
        raise ValueError(
            f"rates is {rates!r}; legal: {', '.join(_FUNCTIONS)}, a function, or a dict of "
            "densities by layer."
        )
    for name, value in zip(names, found, strict=True):
        if not (isinstance(value, Real) and 0 < value <= 1):
            raise ValueError(f"the rate of {name} is {value!r}; legal: 0 < rate <= 1.")
    return found


def bisect(
    increasing: Callable[[float], float], target: float, *, low: float, high: float
) -> float:
    """Return x in [low, high] with increasing(x) = target, to float precision, by bisection.

    If the target is not reached on the interval, the nearer end is returned.

    Args:
        increasing: increasing function of one number.
        target: wanted value of the function.
        low: lower end of the interval.
        high: upper end of the interval.
    """
    for _ in range(100):  # a root at zero could be approached further as long as floats get smaller
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if increasing(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
