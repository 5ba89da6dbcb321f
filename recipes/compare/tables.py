"""The text table of a comparison, with intervals and numbers of points, and its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_plugin.recipes.compare.cells import Cell, conditions, pruned_densities
from robust_plugin.recipes.compare.differences import differences, reference
from robust_plugin.recipes.pages.plots import STYLES, pyplot, save_plot


def comparison_table(cells: Sequence[Cell], *, data: str, threat: str) -> str:
    """Return a comparison as text: conditions, a Markdown table, and the paired differences.

    The table has one line per method and density, and one column per kind of accuracy. With one
    seed, each accuracy has its Wilson 95 % interval over the test points. With several seeds, it is
    the mean over seeds with the half-width of its 95 % t interval.

    Args:
        cells: results of the dense network and of all methods at all densities.
        data: name of the data set.
        threat: the threat model as text.
    """
    rows = cells[0].rows
    lines = [
        conditions(cells, data=data, threat=threat),
        "",
        f"| kept | method | lr | {' | '.join(rows)} |",
        f"|---|---|---|{'---|' * len(rows)}",
    ]
    for cell in cells:
        lr = "" if cell.lr is None else f"{cell.lr:g}"
        shown = " | ".join(cell.shown(row) for row in rows)
        lines.append(f"| {100 * cell.density:g} % | {cell.row} | {lr} | {shown} |")
    lost = [cell for cell in cells if cell.diverged]
    if lost:
        lines += ["", "Learning rates at which a training diverged, and which were not chosen:"]
        lines += [
            f"- {cell.row}, {100 * cell.density:g} % kept: "
            + ", ".join(f"{lr:g}" for lr in cell.diverged)
            for cell in lost
        ]
    for density in pruned_densities(cells):
        lines += _gain(cells, density, rows)
    return "\n".join(lines)


def _gain(cells: Sequence[Cell], density: float, rows: Sequence[str]) -> list[str]:
    """Return the lines with the paired differences at a density; empty if there are none.

    They compare certified accuracy if points were proved, and accuracy under the first attack if
    not.

    Args:
        cells: results of the dense network and of all methods at all densities.
        density: density at which methods are compared.
        rows: kinds of accuracy: "clean", the attacks and, with proofs, "certified".
    """
    measure = "certified" if "certified" in rows else rows[min(1, len(rows) - 1)]
    against = reference(cells, density)
    found = [each for each in differences(cells, density) if each.measure == measure]
    if against is None or not found:
        return []
    chosen = "the magnitude row that validation chose" if against.lr else "of which all is kept"
    pairs = [each for each in found if each.second != against.row]
    return [
        "",
        f"{100 * density:g} % kept, {measure}, points above {against.row}, {chosen} "
        "(McNemar p a seed):",
        *(f"- {each.first}: {each}" for each in found if each.second == against.row),
        *(f"- {each.first} minus {each.second}: {each}" for each in pairs),
    ]


def plot_densities(cells: Sequence[Cell], path: Path) -> None:
    """Plot accuracy against density to a PNG file, one panel per kind of accuracy.

    Error bars are the 95 % t interval over seeds or, for one seed, Wilson's interval over its test
    points. The dense network is a horizontal line, and its interval is the band around the line.

    Args:
        cells: results of the dense network and of all methods at all densities.
        path: the PNG file.
    """
    plt = pyplot()
    rows, densities = cells[0].rows, pruned_densities(cells)
    figure, panels = plt.subplots(
        1, len(rows), figsize=(4.5 * len(rows) + 2.5, 4.2), squeeze=False, sharex=True
    )
    pruned = [cell for cell in cells if cell.lr is not None]
    names = list(dict.fromkeys(cell.row for cell in pruned))
    for axes, row in zip(panels[0], rows, strict=True):
        for cell in (each for each in cells if each.lr is None):
            mean, low, high = (100 * value for value in cell.interval(row))
            axes.axhline(mean, color="black", lw=1, ls=":", label=cell.row)
            axes.axhspan(low, high, color="black", alpha=0.08, lw=0)
        for number, name in enumerate(names):
            line = [cell for cell in pruned if cell.row == name]
            found = [[100 * value for value in cell.interval(row)] for cell in line]
            shift = 1.03 ** (number - (len(names) - 1) / 2)  # so that bars do not overlap
            axes.errorbar(
                [100 * cell.density * shift for cell in line],
                [mean for mean, _, _ in found],
                yerr=[[m - low for m, low, _ in found], [high - m for m, _, high in found]],
                **{"fmt": "o", "ms": 3, "ls": STYLES[number // 10 % 4], "lw": 1, "capsize": 2},
                label=name,
            )
        axes.set(title=row, xlabel="share kept, %", xscale="log")
        axes.set_xticks([100 * density for density in densities])
        axes.set_xticklabels([f"{100 * density:g}" for density in densities])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"accuracy, %; bars: {interval_of(cells)}", fontsize=8)
    panels[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_plot(figure, path)


def interval_of(cells: Sequence[Cell]) -> str:
    """Return a description of the intervals in a comparison, such as "95 % t interval, 3 seeds"."""
    seeds = len(cells[0].reports)
    return f"95 % t interval, {seeds} seeds" if seeds > 1 else "Wilson 95 % of one seed's points"


def plot_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plot robust accuracy on validation points against epochs to a PNG file, a panel per density.

    Args:
        curves: accuracies after each epoch, in [0, 1], by title of the panel, then by method.
        path: the PNG file.
    """
    plt = pyplot()
    figure, panels = plt.subplots(
        1, len(curves), figsize=(4.5 * len(curves) + 2.5, 4.0), sharey=True, squeeze=False
    )
    for axes, (title, methods) in zip(panels[0], curves.items(), strict=True):
        for number, (name, values) in enumerate(methods.items()):
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, STYLES[number // 10 % 4], lw=1, label=name)
        axes.set(title=title, xlabel="epoch after pre-training")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("robust accuracy on validation")
    panels[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_plot(figure, path)
