"""Cells of a comparison: the results of one method at one density, over all seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from robust_plugin.evaluation.report import Report


@dataclass(frozen=True)
class Cell:
    """Results of one method of a comparison at one density, over all seeds.

    Attributes:
        row: name of the method, which is a row of the comparison.
        density: share of weights kept, in (0, 1].
        lr: fine-tuning learning rate with the best robust accuracy on the validation points; None
            for the dense network.
        reports: one evaluation report per seed, all on the same test points.
        validation: robust accuracy on the validation points at ``lr``, mean over seeds, in [0, 1];
            None for the dense network.
        diverged: learning rates at which the training of at least one seed diverged, that is, its
            loss or network outputs became NaN or infinite.
        epochs: number of epochs that the network was trained after the dense one; 0 for the dense
            network.
    """

    row: str
    density: float
    lr: float | None
    reports: Sequence[Report]
    validation: float | None
    diverged: tuple[float, ...] = ()
    epochs: int = 0

    def values(self, row: str) -> list[float]:
        """Return the accuracy of each seed, in [0, 1].

        Args:
            row: kind of accuracy: ``"clean"``, the name of an attack, or ``"certified"``.
        """
        return [report.accuracy(row) for report in self.reports]

    def interval(self, row: str) -> tuple[float, float, float]:
        """Return the mean accuracy over seeds and the two ends of its 95 % interval, in [0, 1].

        The interval is Student's t over the seeds; for one seed, Wilson's over its test points.

        Args:
            row: kind of accuracy: ``"clean"``, the name of an attack, or ``"certified"``.

        Returns:
            tuple: mean, lower end, upper end.
        """
        mean, half = mean_interval(self.values(row))
        if math.isnan(half):
            return mean, *self.reports[0].interval(row)
        return mean, mean - half, mean + half

    def shown(self, row: str) -> str:
        """Return the accuracy with its 95 % interval as text, in per cent.

        Args:
            row: kind of accuracy: ``"clean"``, the name of an attack, or ``"certified"``.
        """
        mean, low, high = (100 * value for value in self.interval(row))
        if len(self.reports) == 1:
            return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
        return f"{mean:.1f} ± {(high - low) / 2:.1f}"

    def flags(self, row: str) -> tuple[bool, ...]:
        """Return, for the first seed, whether each test point counts as correct.

        Args:
            row: ``"clean"`` for correct without an attack, the name of an attack for correct under
                this attack, or ``"certified"`` for proved.
        """
        first = self.reports[0]
        return (first.certified or ()) if row == "certified" else first.flags[row]

    def first(self, n: int) -> Cell:
        """Return the results on the first n test points alone."""
        return replace(self, reports=[report.first(n) for report in self.reports])

    def plain(self) -> dict[str, Any]:
        """Return the cell as dicts, lists, strings and numbers, for JSON."""
        return {
            "row": self.row,
            "density": self.density,
            "lr": self.lr,
            "validation": self.validation,
            "diverged": list(self.diverged),
            "epochs": self.epochs,
            "accuracy": {row: self.values(row) for row in self.rows},
        }

    @property
    def rows(self) -> tuple[str, ...]:
        """Kinds of accuracy in the reports: "clean", the attacks and, with proofs, "certified"."""
        first = self.reports[0]
        return (*first.rows, *(["certified"] if first.certified is not None else []))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and the half-width of its 95 % t interval.

    Args:
        values: one value per seed.

    Returns:
        tuple: mean and half-width; the half-width is NaN for one seed.
    """
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, float(t.ppf(0.975, n - 1)) * math.sqrt(variance / n)


def pruned_densities(cells: Sequence[Cell]) -> list[float]:
    """Return the densities of all methods except the dense network, without repetition."""
    return list(dict.fromkeys(cell.density for cell in cells if cell.lr is not None))


def tables_of(cells: Sequence[Cell]) -> dict[str, tuple[list[Cell], tuple[str, ...]]]:
    """Return the tables of a comparison: cells and kinds of accuracy, by what each table is of.

    All figures of a table are of the same test points. If all kinds of accuracy have equally many
    points, there is one table; otherwise one for each number of points, with the kinds that have at
    least as many.

    Args:
        cells: the dense network's cell and the cells of all methods.
    """
    legal, by_n = cells[0].rows, cells[0].reports[0].rows_by_n
    total = max(by_n)
    return {
        f"all {n} test points" if n == total else f"the first {n} test points": (
            [cell.first(n) for cell in cells],
            tuple(row for row in rows if row in legal),
        )
        for n, rows in by_n.items()
    }


def conditions(cells: Sequence[Cell], *, data: str, threat: str) -> str:
    """Return one line of text with the conditions under which a comparison was measured.

    It has the data set, the threat model, the number of seeds, the number of test points of each
    kind of accuracy, and how much longer the pruned networks were trained than the dense one.

    Args:
        cells: the dense network's cell and the cells of all methods.
        data: name of the data set.
        threat: the threat model as text.
    """
    rows, first = cells[0].rows, cells[0].reports[0]
    seeds = len(cells[0].reports)
    points = ", ".join(f"{row} {len(cells[0].flags(row))}" for row in rows)
    if first.certifier is not None:
        points += f" by {first.certifier}"
    epochs = sorted({cell.epochs for cell in cells if cell.epochs})
    longer = f"; pruned networks trained {epochs[0]}" if epochs else ""
    longer += f" to {epochs[-1]}" if len(epochs) > 1 else ""
    longer += " epochs longer than the dense one" if epochs else ""
    return f"{data}, {threat}, {seeds} seed{'s' * (seeds > 1)}; test points: {points}{longer}"
