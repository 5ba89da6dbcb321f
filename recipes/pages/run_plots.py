"""Plots of the page of a run: training curves, what is kept over the epochs, accuracy by size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from robust_plugin.recipes.pages.accuracy_rows import rows_of
from robust_plugin.recipes.pages.colors import color_of
from robust_plugin.recipes.pages.run_facts import Epoch, Network
from robust_plugin.recipes.pages.svg import drawing, svg_of

# Width of a plot in inches, and the layers up to which each has a line style and a name of its own.
_WIDTH, _NAMED = 4.8, 6
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
# Characters of a layer's name that have room in a legend.
_SHORT = 40
_GRID = {"alpha": 0.25, "lw": 0.6}


def training_plot(epochs: Sequence[Epoch], method: str, validation: str) -> str:
    """Return an SVG of the training loss, and of the validation accuracies, after each epoch.

    The dense network's stage has the colour of dense networks, all others that of the method.

    Args:
        epochs: all epochs in the order of training.
        method: name of the recipe.
        validation: how robust accuracy is measured, for the legend.
    """
    figure, (above, below) = drawing(_WIDTH, 4.2, rows=2, sharex=True)
    for stage, first, part in _stages(epochs):
        x = range(first + 1, first + len(part) + 1)
        style = {"color": _color(stage, method), "ms": 2, "marker": "o" if len(part) < 15 else ""}
        name = {} if first else {"label": "clean"}
        above.plot(x, [epoch.loss for epoch in part], **style)
        below.plot(x, [100 * epoch.clean for epoch in part], ls="--", **style, **name)
        name = {} if first else {"label": validation}
        below.plot(x, [100 * epoch.robust for epoch in part], **style, **name)
    above.set_ylabel("training loss")
    above.set_ylim(0, 1.08 * max(epoch.loss for epoch in epochs))
    below.set(xlabel="epoch", ylabel="validation, %", ylim=(0, 104))
    below.legend(fontsize=8, frameon=False, loc="lower right")
    for axes in (above, below):
        axes.grid(**_GRID)
    _mark_stages(above, below, epochs)
    return svg_of(figure, "training loss and validation accuracy after each epoch")


def kept_plot(epochs: Sequence[Epoch], method: str, unit: str) -> str:
    """Return an SVG of the share that is kept after each epoch: of the budget, and by layer.

    Args:
        epochs: all epochs in the order of training.
        method: name of the recipe.
        unit: unit that the budget is counted in, for the legend.
    """
    figure, axes = drawing(_WIDTH, 3.6)
    layers = list(dict.fromkeys(name for epoch in epochs for name in epoch.densities))
    for number, layer in enumerate(layers):
        named = len(layers) <= _NAMED
        axes.plot(
            range(1, len(epochs) + 1),
            [100 * epoch.densities.get(layer, 1.0) for epoch in epochs],
            ls=_DASHES[number] if named else "-",
            color="black",
            alpha=0.75 if named else 0.15 + 0.6 * number / len(layers),
            lw=1 if named else 0.7,
            label=_short(layer) if named else "_",
        )
    for stage, first, part in _stages(epochs):
        axes.plot(
            range(first + 1, first + len(part) + 1),
            [100 * epoch.density for epoch in part],
            color=_color(stage, method),
            lw=2.2,
            marker="o" if len(part) == 1 else "",
            label="_" if first + len(part) < len(epochs) else f"budget of {unit}",
        )
    lowest = min([100 * epoch.density for epoch in epochs], default=1)
    found = [100 * share for epoch in epochs for share in epoch.densities.values()]
    axes.set(xlabel="epoch", ylabel="share kept, %")
    _logarithmic(axes, "y", min([lowest, *found]) / 1.5, 140)
    axes.grid(**_GRID)
    if layers and len(layers) <= _NAMED:
        columns = 2 if max(map(len, layers)) <= _SHORT // 2 else 1
        figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=columns)
    _mark_stages(axes, axes, epochs)
    return svg_of(figure, "share kept after each epoch")


def size_plot(dense: Network, pruned: Network, method: str, structure: str) -> str:
    """Return an SVG of accuracy against size: the dense and the pruned network with intervals.

    Args:
        dense: measurements of the dense network.
        pruned: measurements of the pruned network, on the same points.
        method: name of the recipe.
        structure: what is pruned, ``"weights"`` or ``"channels"``.
    """
    figure, axes = drawing(_WIDTH, 3.4)
    rows = rows_of(dense.report)
    for name, network in (("dense", dense), (method, pruned)):
        for row, marker in zip(rows, "so^", strict=False):
            accuracy = 100 * network.report.accuracy(row)
            low, high = (100 * end for end in network.report.interval(row))
            axes.errorbar(
                [network.parameters],
                [accuracy],
                yerr=[[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]],
                fmt=marker,
                ms=6,
                capsize=3,
                color=color_of(name),
                label=f"{name}, {row}",
            )
    for row in rows:
        pair = [(each.parameters, 100 * each.report.accuracy(row)) for each in (pruned, dense)]
        axes.plot(*zip(*pair, strict=True), color="black", alpha=0.35, lw=0.8, zorder=0)
    few, many = sorted((pruned.parameters, dense.parameters))
    _logarithmic(axes, "x", few / 2, many * 2)
    what = "parameters that are not zero" if structure == "weights" else "parameters"
    axes.set(xlabel=what, ylabel="accuracy, %", ylim=(0, 104))
    axes.grid(**_GRID)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    return svg_of(figure, "accuracy against size")


def _short(name: str) -> str:
    """Return a name, or the end of one that is too long for a legend."""
    return name if len(name) <= _SHORT else f"…{name[1 - _SHORT :]}"


def _logarithmic(axes: Any, which: str, low: float, high: float) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks.

    Args:
        axes: matplotlib's axes.
        which: ``"x"`` or ``"y"``.
        low: lower end of the axis, above 0.
        high: upper end of it.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def _stages(epochs: Sequence[Epoch]) -> list[tuple[str, int, list[Epoch]]]:
    """Return for each stage its name, the number of epochs before it, and its epochs."""
    found, first = [], 0
    for stage, part in groupby(epochs, key=lambda epoch: epoch.stage):
        each = list(part)
        found.append((stage, first, each))
        first += len(each)
    return found


def _color(stage: str, method: str) -> str:
    """Return the colour of a stage: that of dense networks for pretrain, else the method's."""
    return color_of("dense" if stage == "pretrain" else method)


def _mark_stages(above: Any, below: Any, epochs: Sequence[Epoch]) -> None:
    """Draw a line between two stages, and write the name of each stage over the upper axes.

    The name of a stage is left out if it is longer than its place.

    Args:
        above: axes that get the names.
        below: axes that get the lines too; it may be the same.
        epochs: all epochs in the order of training.
    """
    for stage, first, part in _stages(epochs):
        for axes in dict.fromkeys((above, below)) if first else ():
            axes.axvline(first + 0.5, color="black", alpha=0.5, lw=0.8, ls=":")
        if len(part) / len(epochs) >= 0.016 * len(stage):
            middle = first + (len(part) + 1) / 2
            place = above.get_xaxis_transform()
            above.text(middle, 1.02, stage, transform=place, ha="center", fontsize=8)
    below.xaxis.get_major_locator().set_params(integer=True)
    below.set_xlim(0.5, max(1, len(epochs)) + 0.5)
