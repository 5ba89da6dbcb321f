"""What is shown: tables with n and intervals, and the plot of the kept share per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_plugin.report import Report

# Rows whose scores nobody learned; the strongest of them is what learning has to beat.
_FIXED = ("LWM", "global", "iterative")

_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Cell:
    """One row of a comparison at one density, over all seeds.

    Attributes:
        row: the method.
        density: the share kept.
        lr: the fine-tuning learning rate that validation chose; None for the dense network.
        reports: one a seed, on the same test points.
        validation: mean robust accuracy on the validation points at that rate, in [0, 1].
    """

    row: str
    density: float
    lr: float | None
    reports: Sequence[Report]
    validation: float | None

    def values(self, row: str) -> list[float]:
        """Return the accuracy of each seed, in [0, 1]."""
        return [report.accuracy(row) for report in self.reports]

    def plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "row": self.row,
            "density": self.density,
            "lr": self.lr,
            "validation": self.validation,
            "accuracy": {row: self.values(row) for row in self.rows},
        }

    @property
    def rows(self) -> tuple[str, ...]:
        """What was measured: ``"clean"``, the attacks, and ``"certified"`` if it was."""
        first = self.reports[0]
        return (*first.rows, *(["certified"] if first.certified is not None else []))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and the half-width of its 95 % t interval; NaN for one seed."""
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, float(t.ppf(0.975, n - 1)) * math.sqrt(variance / n)


def comparison_table(cells: Sequence[Cell], *, data: str, threat: str) -> str:
    """Return the comparison as Markdown: a line a cell, then learned minus magnitude.

    One seed: accuracy with its Wilson 95 % interval over the points. Several: the mean over
    seeds with the half-width of its 95 % t interval.
    """
    rows, first = cells[0].rows, cells[0].reports[0]
    seeds = len(cells[0].reports)
    counts = {**first.flags, "certified": first.certified or ()}
    points = ", ".join(f"{row} {len(counts[row])}" for row in rows)
    if first.certifier is not None:
        points += f" by {first.certifier}"
    lines = [
        f"{data}, {threat}, {seeds} seed{'s' * (seeds > 1)}; test points: {points}",
        "",
        f"| kept | method | lr | {' | '.join(rows)} |",
        f"|---|---|---|{'---|' * len(rows)}",
    ]
    for cell in cells:
        lr = "" if cell.lr is None else f"{cell.lr:g}"
        shown = " | ".join(_shown(cell, row) for row in rows)
        lines.append(f"| {100 * cell.density:g} % | {cell.row} | {lr} | {shown} |")
    lines += [line for density in _densities(cells) for line in _gain(cells, density, rows)]
    return "\n".join(lines)


def _shown(cell: Cell, row: str) -> str:
    values = cell.values(row)
    if len(values) == 1:
        low, high = cell.reports[0].interval(row)
        return f"{100 * values[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    mean, half = mean_interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def _densities(cells: Sequence[Cell]) -> list[float]:
    return list(dict.fromkeys(cell.density for cell in cells if cell.lr is not None))


def _gain(cells: Sequence[Cell], density: float, rows: Sequence[str]) -> list[str]:
    """Each learned row minus the magnitude row that validation chose, paired by seed.

    In what is certified, where anything is; else under the first attack.
    """
    here = [cell for cell in cells if cell.density == density and cell.validation is not None]
    fixed = [cell for cell in here if cell.row.startswith(_FIXED)]
    learned = [cell for cell in here if not cell.row.startswith(_FIXED)]
    if not fixed or not learned or len(rows) < 2:
        return []
    best = max(fixed, key=lambda cell: cell.validation or 0.0)
    measure = "certified" if "certified" in rows else rows[1]
    return [
        "",
        f"{100 * density:g} % kept, {measure}, points above {best.row}, the magnitude row that "
        "validation chose (McNemar p a seed):",
        *(f"- {cell.row}: {_difference(cell, best, measure)}" for cell in learned),
    ]


def _difference(cell: Cell, other: Cell, measure: str) -> str:
    pairs = zip(cell.values(measure), other.values(measure), strict=True)
    mean, half = mean_interval([a - b for a, b in pairs])
    interval = f" ± {100 * half:.1f}" if not math.isnan(half) else ""
    reports = zip(cell.reports, other.reports, strict=True)
    p_values = ", ".join(f"{a.compare(b, measure):.2g}" for a, b in reports)
    return f"{100 * mean:+.1f}{interval} ({p_values})"


def plot_kept(kept: Mapping[str, Mapping[str, Sequence[int]]], path: Path) -> None:
    """Draw the kept share of each layer, one line a network, to a PNG.

    Args:
        kept: by network, then by layer: [kept, size].
        path: the file.
    """
    plt = pyplot()
    layers = list(next(iter(kept.values())))
    figure, axes = plt.subplots(figsize=(max(6.0, 0.5 * len(layers) + 4), 4.5))
    for number, (name, shares) in enumerate(kept.items()):
        values = [shares[layer][0] / shares[layer][1] for layer in layers]
        axes.plot(values, _STYLES[number // 10 % 4], marker="o", ms=3, label=name)
    axes.set_yscale("log")
    axes.set_ylabel("share kept")
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=7)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.3)
    _save(figure, path)


def plot_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw robust accuracy on validation against epochs, a panel a density, to a PNG.

    Args:
        curves: by panel, then by method: the accuracy after each epoch, in [0, 1].
        path: the file.
    """
    plt = pyplot()
    figure, panels = plt.subplots(
        1, len(curves), figsize=(4.5 * len(curves) + 2.5, 4.0), sharey=True, squeeze=False
    )
    for axes, (title, methods) in zip(panels[0], curves.items(), strict=True):
        for number, (name, values) in enumerate(methods.items()):
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, _STYLES[number // 10 % 4], lw=1, label=name)
        axes.set(title=title, xlabel="epoch after pre-training")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("robust accuracy on validation")
    panels[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files alone."""
    import matplotlib

    matplotlib.use("Agg")  # no window, on any machine
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial, dpi=130)
    pyplot().close(figure)
    partial.replace(path)
