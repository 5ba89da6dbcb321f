"""Paired differences between rows of a comparison, over seeds or over the points of one seed."""

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
    """Accuracy of one row minus another at one density, on the same test points.

    Attributes:
        density: share of weights kept, in (0, 1].
        first: name of the first row.
        second: name of the row that is subtracted.
        measure: accuracy that is compared: ``"clean"``, an attack or ``"certified"``.
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
    """Return the difference of two cells: first minus second.

    Args:
        first: cell of the first row.
        second: cell that is subtracted, with as many seeds.
        measure: accuracy that is compared: ``"clean"``, an attack or ``"certified"``.

    Raises:
        ValueError: if the two cells were not measured on the same points.
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
        first: whether each point is correct for the first network.
        second: whether each point is correct for the second network.
    """
    n = len(first)
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    shares = [wins / n, losses / n, (n - wins - losses) / n]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return float(low), float(high)


def reference(cells: Sequence[Cell], density: float) -> Cell | None:
    """Return the cell that learned rows are compared with at a density.

    That is the magnitude row with the best accuracy on validation. Without magnitude rows it is the
    dense network, and None if there is no dense network either.
    """
    fixed = [cell for cell in _pruned_at(cells, density) if cell.row.startswith(_FIXED)]
    dense = next((cell for cell in cells if cell.lr is None), None)
    return max(fixed, key=lambda cell: cell.validation or 0.0, default=dense)


def differences(cells: Sequence[Cell], density: float) -> list[Difference]:
    """Return the difference of each learned row and the reference, for every measure.

    If the comparison has the rows "HYDRA uniform" and "LWM uniform", their difference follows.

    Args:
        cells: cells of the comparison.
        density: density at which rows are compared.
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
    """Return the cells of the pruned rows at a density."""
    return [cell for cell in cells if cell.density == density and cell.validation is not None]
