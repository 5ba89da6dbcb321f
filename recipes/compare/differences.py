"""Paired differences between the methods of a comparison, over seeds or points of one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robust_plugin.recipes.compare.cells import Cell, mean_interval

# Beginnings of the names of rows with fixed scores, that is, with magnitude pruning. The best of
# these rows is the baseline for rows with learned scores.
_FIXED = ("LWM", "global", "iterative")

# Rows that are also compared with each other, because their papers use uniform rates.
_UNIFORM = ("HYDRA uniform", "LWM uniform")

_RESAMPLES = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Difference:
    """Accuracy of one method minus that of another at one density, on the same test points.

    Attributes:
        density: share of weights kept, in (0, 1].
        first: name of the first method.
        second: name of the method whose accuracy is subtracted.
        measure: kind of accuracy: ``"clean"``, the name of an attack, or ``"certified"``.
        mean: mean difference over seeds, in [-1, 1].
        low: lower end of the 95 % interval: Student's t over the differences by seed; for one seed,
            the paired bootstrap over its points.
        high: upper end of the 95 % interval.
        by_seed: difference of each seed.
        p_values: p-value of McNemar's exact test for each seed.
    """

    density: float
    first: str
    second: str
    measure: str
    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    p_values: tuple[float, ...]

    def __str__(self) -> str:
        """Return the difference in percentage points, its interval and its p-values as text."""
        interval = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        if len(self.by_seed) > 1:
            interval = f"± {50 * (self.high - self.low):.1f}"
        p_values = ", ".join(f"{p:.2g}" for p in self.p_values)
        return f"{100 * self.mean:+.1f} {interval} ({p_values})"

    def plain(self) -> dict[str, Any]:
        """Return all attributes as a dict, for JSON."""
        return asdict(self)


def difference(first: Cell, second: Cell, measure: str) -> Difference:
    """Return the difference between two methods: accuracy of the first minus that of the second.

    Args:
        first: results of the first method.
        second: results of the method that is subtracted, for as many seeds.
        measure: kind of accuracy: ``"clean"``, the name of an attack, or ``"certified"``.

    Raises:
        ValueError: if the two methods were not measured on the same points.
    """
    pairs = list(zip(first.reports, second.reports, strict=True))
    p_values = tuple(a.compare(b, measure) for a, b in pairs)
    by_seed = tuple(a.accuracy(measure) - b.accuracy(measure) for a, b in pairs)
    mean, half = mean_interval(by_seed)
    low, high = mean - half, mean + half
    if math.isnan(half):
        low, high = paired_bootstrap(first.flags(measure), second.flags(measure))
    names = first.density, first.row, second.row, measure
    return Difference(*names, mean, low, high, by_seed, p_values)


def paired_bootstrap(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the difference of two accuracies on the same points.

    The ends are percentiles of the differences of the resamples. A resample draws points with
    replacement. The difference at a point is +1, -1 or 0 and only their counts matter, so one
    multinomial sample of the counts replaces one resample of the points.

    Args:
        first: whether the first network is correct at each point.
        second: whether the second network is correct at each point.

    Returns:
        tuple: lower and upper end for first minus second, in [-1, 1].
    """
    n = len(first)
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    shares = [wins / n, losses / n, (n - wins - losses) / n]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return float(low), float(high)


def reference(cells: Sequence[Cell], density: float) -> Cell | None:
    """Return the results that methods with learned scores are compared with at a density.

    They are those of the magnitude pruning with the best accuracy on the validation points. If the
    comparison has no magnitude pruning, they are those of the dense network; None without both.

    Args:
        cells: results of all methods at all densities.
        density: density at which methods are compared.
    """
    fixed = [cell for cell in _pruned_at(cells, density) if cell.row.startswith(_FIXED)]
    dense = next((cell for cell in cells if cell.lr is None), None)
    return max(fixed, key=lambda cell: cell.validation or 0.0, default=dense)


def differences(cells: Sequence[Cell], density: float) -> list[Difference]:
    """Return the difference between each method with learned scores and the baseline.

    The baseline is that of ``reference``: the best magnitude pruning or, without any, the dense
    network. There is one difference for each kind of accuracy. If the comparison has the methods
    "HYDRA uniform" and "LWM uniform" (magnitude pruning at equal layer densities), their
    differences follow.

    Args:
        cells: results of all methods at all densities.
        density: density at which methods are compared.
    """
    here = {cell.row: cell for cell in _pruned_at(cells, density)}
    against = reference(cells, density)
    learned = [cell for row, cell in here.items() if not row.startswith(_FIXED)]
    pairs = [(cell, against) for cell in learned if against is not None]
    if all(row in here for row in _UNIFORM):
        first, second = (here[row] for row in _UNIFORM)
        pairs += [(first, second)] if against is not second else []
    return [difference(a, b, measure) for a, b in pairs for measure in a.rows]


def _pruned_at(cells: Sequence[Cell], density: float) -> list[Cell]:
    """Return the cells of a density, without that of the dense network."""
    return [cell for cell in cells if cell.density == density and cell.validation is not None]
