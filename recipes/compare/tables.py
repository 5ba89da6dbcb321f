"""What is shown: tables with n and intervals, and plots over densities, layers and epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_plugin.recipes.cells import Cell, conditions, pruned_densities
from robust_plugin.recipes.differences import differences, reference
from robust_plugin.smoothing import Certificates
from robust_plugin.statistics import wilson_interval

STYLES = ("-", "--", ":", "-.")


def comparison_table(cells: Sequence[Cell], *, data: str, threat: str) -> str:
    """Return the comparison as Markdown: a line a cell, then the paired differences.

    One seed: accuracy with its Wilson 95 % interval over the points. Several: the mean over
    seeds with the half-width of its 95 % t interval.
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
    """The differences in what is certified, where anything is; else under the first attack."""
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
    """Draw accuracy against density with intervals, a panel a measure, to a PNG.

    Bars are the 95 % t interval over seeds or, of one seed, Wilson's over its test points; the
    dense network is the line across, its interval the band.

    Args:
        cells: of a comparison.
        path: the file.
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
            shift = 1.03 ** (number - (len(names) - 1) / 2)  # bars side by side
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


def plot_radii(found: Certificates, sigma: float, path: Path) -> None:
    """Draw certified accuracy against the L2 radius, with Wilson's 95 % band, to a PNG.

    Args:
        found: by randomized smoothing.
        sigma: of its noise.
        path: the file.
    """
    n = len(found.labels)
    radii = sorted({0.0, *found.radii[found.certified(0.0)].tolist()})
    counts = [int(found.certified(radius).sum()) for radius in radii]
    low, high = zip(*(wilson_interval(count, n) for count in counts), strict=True)
    figure, axes = pyplot().subplots(figsize=(6, 3.6))
    axes.step(radii, [100 * count / n for count in counts], where="pre", label=f"sigma {sigma:g}")
    band = [[100 * each for each in ends] for ends in (low, high)]
    axes.fill_between(radii, *band, step="pre", alpha=0.15, lw=0)
    axes.set(xlabel="L2 radius, input units", ylabel=f"certified accuracy, %; n={n}", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_plot(figure, path)


def interval_of(cells: Sequence[Cell]) -> str:
    """Return what the intervals of a comparison are."""
    seeds = len(cells[0].reports)
    return f"95 % t interval, {seeds} seeds" if seeds > 1 else "Wilson 95 % of one seed's points"


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
        axes.plot(values, STYLES[number // 10 % 4], marker="o", ms=3, label=name)
    axes.set_yscale("log")
    axes.set_ylabel("share kept")
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=7)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.3)
    save_plot(figure, path)


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
            axes.plot(epochs, values, STYLES[number // 10 % 4], lw=1, label=name)
        axes.set(title=title, xlabel="epoch after pre-training")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("robust accuracy on validation")
    panels[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_plot(figure, path)


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files alone."""
    import matplotlib

    matplotlib.use("Agg")  # no window, on any machine
    from matplotlib import pyplot

    return pyplot


def save_plot(figure: Any, path: Path) -> None:
    """Write a figure to a PNG, whole or not at all, and close it."""
    figure.tight_layout()
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial, dpi=130)
    pyplot().close(figure)
    partial.replace(path)
