"""The plots of a comparison: accuracy against density, and validation after each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robust_plugin.recipes.compare.cells import Cell, pruned_densities
from robust_plugin.recipes.pages.colors import color_of, style_of
from robust_plugin.recipes.pages.plots import percent_range, plot_panels


def plot_densities(cells: Sequence[Cell], path: Path) -> None:
    """Plot accuracy against density to a PNG file, one panel per kind of accuracy.

    Args:
        cells: results of the dense network and of all methods at all densities.
        path: the PNG file.
    """
    plot_panels({row: partial(draw_densities, cells=cells, row=row) for row in cells[0].rows}, path)


def draw_densities(axes: Any, cells: Sequence[Cell], row: str) -> None:
    """Draw one kind of accuracy against the share of weights kept, on a logarithmic axis.

    Error bars are the 95 % t interval over seeds or, for one seed, Wilson's interval over its test
    points. The dense network is a horizontal line, and its interval is the band around the line.

    Args:
        axes: matplotlib axes.
        cells: results of the dense network and of all methods at all densities.
        row: kind of accuracy: ``"clean"``, the name of an attack, or ``"certified"``.
    """
    pruned = [cell for cell in cells if cell.lr is not None]
    for cell in (each for each in cells if each.lr is None):
        mean, low, high = (100 * value for value in cell.interval(row))
        axes.axhline(mean, color=color_of(cell.row), lw=1.2, ls="--", label=cell.row)
        axes.axhspan(low, high, color=color_of(cell.row), alpha=0.15, lw=0)
    names = list(dict.fromkeys(cell.row for cell in pruned))
    for number, name in enumerate(names):
        line = [cell for cell in pruned if cell.row == name]
        found = [[100 * value for value in cell.interval(row)] for cell in line]
        shift = 1.04 ** (number - (len(names) - 1) / 2)  # so that bars do not overlap
        style, marker = style_of(name)
        axes.errorbar(
            [100 * cell.density * shift for cell in line],
            [mean for mean, _, _ in found],
            yerr=[[m - low for m, low, _ in found], [high - m for m, _, high in found]],
            **{"fmt": marker, "ms": 5, "ls": style, "lw": 1.2, "capsize": 2, "elinewidth": 1},
            color=color_of(name),
            label=name,
        )
    densities = [100 * density for density in pruned_densities(cells)]
    middle = math.sqrt(min(densities) * max(densities))
    # One decade at least, and a margin beside the outer densities.
    reach = max(math.sqrt(10), 1.5 * max(densities) / middle)
    axes.set_xscale("log")
    axes.set_xlim(middle / reach, middle * reach)
    axes.set_xticks(densities, [f"{density:g}" for density in densities])
    axes.minorticks_off()
    axes.set_ylim(*percent_range(100 * value for cell in cells for value in cell.interval(row)))
    axes.set(xlabel="share kept, %", ylabel="accuracy, %")
    axes.grid(alpha=0.3)


def plot_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plot robust accuracy on validation points against epochs to a PNG file, a panel per density.

    Args:
        curves: accuracies after each epoch, in [0, 1], by title of the panel, then by method.
        path: the PNG file.
    """
    plot_panels(
        {title: partial(draw_curves, curves=methods) for title, methods in curves.items()}, path
    )


def draw_curves(axes: Any, curves: Mapping[str, Sequence[float]]) -> None:
    """Draw robust accuracy on the validation points after each epoch, in per cent.

    Args:
        axes: matplotlib axes.
        curves: accuracies after each epoch, in [0, 1], by method.
    """
    for name, values in curves.items():
        line, marker = style_of(name)
        axes.plot(
            range(1, len(values) + 1),
            [100 * value for value in values],
            **{"ls": line, "lw": 1.2, "marker": marker if len(values) <= 12 else "", "ms": 3},
            color=color_of(name),
            label=name,
        )
    axes.set_ylim(*percent_range(100 * value for each in curves.values() for value in each))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch after pre-training", ylabel="robust accuracy, %")
    axes.grid(alpha=0.3)
