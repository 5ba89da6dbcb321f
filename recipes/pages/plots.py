"""Plots that several commands share, ranges of axes that do not mislead, and PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_plugin.certificates.radii import Certificates
from robust_plugin.recipes.pages.colors import color_of, style_of
from robust_plugin.recipes.pages.svg import drawing, short_name
from robust_plugin.runtime.files import replacing

# Width of a plot in inches; on a phone, text of a wider one would be too small.
_WIDTH = 4.8
# Height of a line of the legend, in inches.
_LINE = 0.18
# Least span of an axis of accuracies, in per cent: a smaller one would make noise look large.
_SPAN = 20.0

# Shares kept: [number kept, size] by layer or channel group.
Kept = Mapping[str, Sequence[int]]


def plot_radii(found: Certificates, sigma: float, path: Path) -> None:
    """Plot certified accuracy against the L2 radius, with Wilson's 95 % band, to a PNG file.

    Args:
        found: certificates of randomized smoothing.
        sigma: standard deviation of the noise, for the legend.
        path: the PNG file.
    """
    figure, axes = drawing(6, 3.6)
    found.plot(axes, label=f"sigma {sigma:g}")
    save_plot(figure, path)


def plot_kept(kept: Mapping[str, Kept], path: Path) -> None:
    """Plot the share of weights or channels that each layer keeps, with one line per network.

    Args:
        kept: [number kept, size] by name of the network, then by layer or channel group.
        path: the PNG file to write.
    """
    layers = len(next(iter(kept.values())))
    figure, axes = drawing(max(6.0, 0.25 * layers + 3), 4.0)
    draw_kept(axes, kept)
    legend(figure, axes)
    save_plot(figure, path)


def draw_kept(axes: Any, kept: Mapping[str, Kept]) -> None:
    """Draw the share that each layer keeps, in per cent on a logarithmic axis.

    The axis ends at powers of ten and spans one at least, so that layers which differ by rounding
    alone look alike.

    Args:
        axes: matplotlib axes.
        kept: [number kept, size] by name of the network, then by layer or channel group.
    """
    layers = list(next(iter(kept.values())))
    for name, counts in kept.items():
        line, marker = style_of(name)
        values = [100 * counts[layer][0] / counts[layer][1] for layer in layers]
        style = {"color": color_of(name), "ls": line, "marker": marker, "ms": 4, "lw": 1.2}
        axes.plot(values, label=name, **style)
    shares = [kept / size for counts in kept.values() for kept, size in counts.values()]
    axes.set_yscale("log")
    axes.set_ylim(*decades(100 * share for share in shares))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("share kept, %")
    names = [short_name(layer.removesuffix(".weight")) for layer in layers]
    steep = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(layers)), names, **(steep if max(map(len, names)) > 3 else {}))
    axes.set_xlabel("layer")
    axes.tick_params("x", labelsize=8 if len(layers) <= 20 else 6)
    axes.grid(alpha=0.3)


def decades(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis: powers of ten around all values, one decade at least.

    Args:
        values: the values; those that are 0 do not count.

    >>> decades([5.01, 5.12])
    (1.0, 10.0)
    """
    logs = [math.log10(value) for value in values if value > 0] or [0.0]
    # A value that is a power of ten but for rounding must not ask for one more decade.
    low, high = math.floor(min(logs) + 1e-9), math.ceil(max(logs) - 1e-9)
    return 10.0 ** min(low, high - 1), 10.0**high


def percent_range(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of an axis of accuracies in per cent: tens around all values.

    The axis lies in 0 to 100 and spans 20 per cent at least.

    Args:
        values: accuracies and ends of their intervals, in per cent.

    >>> percent_range([91.2, 93.4])
    (80.0, 100.0)
    """
    each = list(values)
    low = max(0.0, 10 * math.floor(min(each, default=0) / 10))
    high = min(100.0, 10 * math.ceil(max(each, default=100) / 10))
    low = min(low, max(0.0, high - _SPAN))
    return low, max(high, low + _SPAN)


def legend(figure: Any, axes: Any) -> None:
    """Write the names of all lines of the axes below the plot, in one or two columns.

    The figure grows by the height of the names, so that the plot itself keeps its height.

    Args:
        figure: a figure of ``drawing``.
        axes: axes whose lines are named.
    """
    lines, names = axes.get_legend_handles_labels()
    if names:
        columns = 2 if len(names) > 1 and max(map(len, names)) <= 26 else 1
        rows = math.ceil(len(names) / columns)
        figure.set_figheight(figure.get_figheight() + 0.1 + _LINE * rows)
        figure.legend(
            lines, names, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False
        )


def plot_panels(
    panels: Mapping[str, Callable[[Any], None]], path: Path, *, height: float = 3.6
) -> None:
    """Draw several plots beside each other, with one legend, to a PNG file.

    Args:
        panels: functions that draw on axes, by title.
        path: the PNG file.
        height: height in inches.
    """
    figure, row = drawing(_WIDTH * len(panels), height, columns=len(panels), squeeze=False)
    for axes, (title, draw) in zip(row[0], panels.items(), strict=True):
        draw(axes)
        axes.set_title(title)
    legend(figure, row[0][0])
    save_plot(figure, path)


def save_plot(figure: Any, path: Path) -> None:
    """Write a matplotlib figure to a PNG file; an interruption never leaves half a file.

    Args:
        figure: the figure.
        path: the PNG file.
    """
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
