"""Rules for the density of each layer (its rate), for one budget over all layers.

Every rule is a function of three arguments: the weights of each group (or the magnitudes of its
channels), the cost of one weight or channel of each group, and the density of the whole network. It
returns one density k_l per group with sum_l cost_l k_l n_l = density * sum_l cost_l n_l, where
group l has n_l weights or channels.
"""

from __future__ import annotations

import inspect
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
    """Return Erdos-Renyi-Kernel densities: k_l proportional to sum(shape) / prod(shape), at most 1.

    Evci et al. 2020 (RigL), section 3. Layers whose density would exceed 1 stay dense, and the
    other layers share the rest of the budget.
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
    """Return the layer densities that result from one threshold on the LAMP scores of all layers.

    The score of a weight is w_i^2 / sum_{j: ``|w_j| >= |w_i|``} w_j^2, with the sum over its layer
    (Lee et al. 2021, equation 4). The largest weight of a layer scores 1, so no layer loses all its
    weights.
    """

    def score(weight: Tensor) -> Tensor:
        squares = weight.detach().double().square().flatten().sort().values
        at_least = squares.flip(0).cumsum(0).flip(0)
        return squares / at_least.clamp(min=1e-300)

    return _threshold([score(w) for w in weights], costs, density)


def global_magnitude(
    weights: Sequence[Tensor], costs: Sequence[float], density: float
) -> list[float]:
    """Return the layer densities that result from one threshold on ``|w|`` over all layers."""
    return _threshold([w.detach().double().abs().flatten() for w in weights], costs, density)


def _threshold(scores: Sequence[Tensor], costs: Sequence[float], density: float) -> list[float]:
    """Return the density of each group if all entries with a score above one threshold are kept.

    The threshold is as low as the budget allows. Every group keeps at least one entry.

    Args:
        scores: scores of the entries (weights or channels) of each group, shape [size of group].
        costs: cost of one entry of each group.
        density: share of the total cost that may be kept, in (0, 1].
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
    """Return the density of each group, in (0, 1], by a rule or as given.

    Args:
        rates: name of a rule, a function with the arguments of the rules in this file, or a dict
            from group names to densities.
        names: names of the groups.
        weights: weights of each group, or magnitudes of its channels.
        costs: cost of one weight or channel of each group.
        density: share of the cost of all groups that is kept, in (0, 1]; not used if ``rates`` is a
            dict.

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
        found = _asked(rates, names, weights, costs, density)
    else:
        raise ValueError(
            f"rates is {rates!r}; legal: {', '.join(_FUNCTIONS)}, a function, or a dict of "
            "densities by layer."
        )
    for name, value in zip(names, found, strict=True):
        if not (isinstance(value, Real) and 0 < value <= 1):
            raise ValueError(f"the rate of {name} is {value!r}; legal: 0 < rate <= 1.")
    return found


def _asked(
    rates: Callable[[Sequence[Tensor], Sequence[float], float], list[float]],
    names: Sequence[str],
    weights: Sequence[Tensor],
    costs: Sequence[float],
    density: float,
) -> list[float]:
    """Return what a user's function gives as the density of each group, as a list.

    Args:
        rates: the function.
        names: names of the groups.
        weights: weights of each group, or magnitudes of its channels.
        costs: cost of one weight or channel of each group.
        density: share of the cost of all groups that is kept.

    Raises:
        TypeError: if the function does not take three arguments.
        ValueError: unless it returns one density per group.
    """
    try:
        inspect.signature(rates).bind(weights, costs, density)
    except TypeError as error:
        raise TypeError(
            f"rates cannot be called as rates(weights, costs, density) ({error}); give a function "
            f"of these three, or one of {', '.join(_FUNCTIONS)}."
        ) from error
    found = rates(weights, costs, density)
    if not isinstance(found, Sequence) or len(found) != len(names):
        raise ValueError(
            f"rates returned {found!r}; legal: a list of {len(names)} densities, those of "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."
        )
    return list(found)


def bisect(
    increasing: Callable[[float], float], target: float, *, low: float, high: float
) -> float:
    """Return x in [low, high] with increasing(x) = target, to float precision, by bisection.

    If the target is not reached on the interval, the nearer end is returned.

    Args:
        increasing: increasing function of a float.
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
