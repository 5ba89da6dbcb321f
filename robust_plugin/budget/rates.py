"""Rates: how dense each layer is, for one budget over all of them.

Every function takes the groups' magnitudes, the cost of one entry of each, and the share of the
budget, and returns one density a group with sum_l cost_l k_l n_l = density * sum_l cost_l n_l.
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
    """The same density everywhere: k_l = k."""
    return [density] * len(weights)


def erk(weights: Sequence[Tensor], costs: Sequence[float], density: float) -> list[float]:
    """Erdos-Renyi-Kernel: k_l proportional to sum(shape) / prod(shape), at most 1.

    Evci et al. 2020 (RigL), section 3; layers that would exceed 1 stay dense and the others
    share what is left.
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
    """One threshold over all layers on LAMP scores, w_i^2 / sum_{j: |w_j| >= |w_i|} w_j^2.

    Lee et al. 2021, equation 4. The largest weight of a layer scores 1, so none is emptied.
    """

    def score(weight: Tensor) -> Tensor:
        squares = weight.detach().double().square().flatten().sort().values
        at_least = squares.flip(0).cumsum(0).flip(0)
        return squares / at_least.clamp(min=1e-300)

    return _threshold([score(w) for w in weights], costs, density)


def global_magnitude(
    weights: Sequence[Tensor], costs: Sequence[float], density: float
) -> list[float]:
    """One threshold over all layers on |w|."""
    return _threshold([w.detach().double().abs().flatten() for w in weights], costs, density)


def _threshold(scores: Sequence[Tensor], costs: Sequence[float], density: float) -> list[float]:
    """Keep the scores above one threshold whose cost meets the budget."""
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
    """Return one density a group, each in (0, 1].

    Args:
        rates: a rule's name, a function like those above, or densities by group name.
        names: the groups.
        weights: their weights, or magnitudes.
        costs: what one entry of each costs.
        density: the share of the budget; a dict of rates does not need it.

    Raises:
        ValueError: for an unknown rule, names that do not match, or a density outside (0, 1].
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
    """Solve increasing(x) = target on [low, high] to float precision, or return the nearer end."""
    for _ in range(100):  # a root at zero would be approached for as long as floats get smaller
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if increasing(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
