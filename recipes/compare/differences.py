"""Paired differences between the rows of a comparison: by seed, or over the points of one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robust_plugin.recipes.compare.cells import Cell, mean_interval

# Rows whose scores nobody learned; the strongest of them is what learning has to beat.
_FIXED = ("LWM", "global", "iterative")

# At the rates of the papers, which are uniform.
_UNIFORM = ("HYDRA uniform", "LWM uniform")

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """One row minus another at one density, on the same test points.

    Attributes:
        density: the share kept.
        first: the row.
        second: what is subtracted.
        measure: ``"clean"``, an attack or ``"certified"``.
        mean: over seeds, in [-1, 1].
        low: lower end of the 95 % interval: Student's t over the differences by seed or, of one
            seed, the paired bootstrap over its points.
        high: upper end.
        by_seed: the difference of each seed.
        p_values: of McNemar's exact test, one a seed.
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
        """Return points of accuracy with interval and p-values."""
        interval = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        if len(self.by_seed) > 1:
            interval = f"± {50 * (self.high - self.low):.1f}"
        p_values = ", ".join(f"{p:.2g}" for p in self.p_values)
        return f"{100 * self.mean:+.1f} {interval} ({p_values})"

    def plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def difference(first: Cell, second: Cell, measure: str) -> Difference:
    """Return first minus second.

    Raises:
        ValueError: if they were not measured on the same points.
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
    """Return the 95 % percentile interval of the difference of two accuracies on the same points.

    Points are drawn with replacement; only how often each of the differences +1, -1 and 0 is
    drawn matters, so that one multinomial draw is one resample.
    """
    n = len(first)
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    shares = [wins / n, losses / n, (n - wins - losses) / n]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return float(low), float(high)


def reference(cells: Sequence[Cell], density: float) -> Cell | None:
    """Return what learned rows are measured against at a density.

    The magnitude row that validation chose; without one the dense network; None without either.
    """
    fixed = [cell for cell in _at(cells, density) if cell.row.startswith(_FIXED)]
    dense = next((cell for cell in cells if cell.lr is None), None)
    return max(fixed, key=lambda cell: cell.validation or 0.0, default=dense)


def differences(cells: Sequence[Cell], density: float) -> list[Difference]:
    """Return, at a density, each learned row minus the reference.

    Then HYDRA minus LWM, both at uniform rates, where there are such rows. By everything that was
    measured.
    """
    here = {cell.row: cell for cell in _at(cells, density)}
    against = reference(cells, density)
    learned = [cell for row, cell in here.items() if not row.startswith(_FIXED)]
    pairs = [(cell, against) for cell in learned if against is not None]
    if all(row in here for row in _UNIFORM):
        first, second = (here[row] for row in _UNIFORM)
        pairs += [(first, second)] if against is not second else []
    return [difference(a, b, measure) for a, b in pairs for measure in a.rows]


def _at(cells: Sequence[Cell], density: float) -> list[Cell]:
    return [cell for cell in cells if cell.density == density and cell.validation is not None]
