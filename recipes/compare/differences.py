"""Paired differences between the methods of a comparison, over seeds or points of one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robust_plugin.recipes.compare.cells import Cell, mean_interval

# Beginnings of the names of rows with fixed scores, that is, with magnitude pruning. The best of
# these rows is the baseline for rows with learned scores.
_FIXED = ("LWM", "global", "iterative", "gradual magnitude")

# Rows that are also compared with each other, because their papers use uniform rates.
_UNIFORM = ("HYDRA uniform", "LWM uniform")


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
            Tango's interval of paired proportions over its points.
        high: upper end of the 95 % interval.
        by_seed: difference of each seed.
        p_values: p-value of McNemar's exact test for each seed.
        n: number of test points.
        extra_epochs: by how many epochs the first method trained longer than the second.
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
    n: int
    extra_epochs: int = 0

    @property
    def better(self) -> str | None:
        """Name of the better method; None if the difference may be chance.

        It may be if the 95 % interval over seeds contains 0 or, for one seed, if McNemar's p-value
        is 0.05 or more.
        """
        one = len(self.by_seed) == 1
        if self.p_values[0] >= 0.05 if one else self.low <= 0 <= self.high:
            return None
        return self.first if self.mean > 0 else self.second

    @property
    def verdict(self) -> str:
        """Which method is better, and which one trained longer, in words."""
        said = "no clear difference" if self.better is None else f"{self.better} is better"
        if not self.extra_epochs:
            return said
        longer = self.first if self.extra_epochs > 0 else self.second
        epochs = abs(self.extra_epochs)
        return f"{said}; {longer} trained {epochs} epoch{'s' * (epochs > 1)} longer"

    def __str__(self) -> str:
        """Return the difference in points, its interval, its p-values and the verdict."""
        interval = f"points, 95 % interval [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        if len(self.by_seed) > 1:
            interval = f"± {50 * (self.high - self.low):.1f} points, 95 % interval over seeds"
        p_values = ", ".join(f"{p:.2g}" for p in self.p_values)
        return f"{100 * self.mean:+.1f} {interval}, n = {self.n}, p = {p_values}: {self.verdict}"

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
    longer = first.epochs - second.epochs
    pairs = [
        a.compare(b, measure, name=first.row, other_name=second.row, extra_epochs=longer)
        for a, b in zip(first.reports, second.reports, strict=True)
    ]
    by_seed = tuple(pair.difference for pair in pairs)
    mean, half = mean_interval(by_seed)
    low, high = pairs[0].interval if math.isnan(half) else (mean - half, mean + half)
    p_values = tuple(pair.p for pair in pairs)
    names = first.density, first.row, second.row, measure
    return Difference(*names, mean, low, high, by_seed, p_values, pairs[0].n, longer)


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
