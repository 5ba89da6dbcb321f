"""Plots of results: bars with intervals, and curves with a band, on matplotlib's axes.

matplotlib is imported when the first plot is drawn. Given axes are drawn on as they are, and pyplot
is not touched then; without them pyplot makes a new figure, which a notebook shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Height of one bar, and of what is above and below all bars, in inches.
_BAR, _FRAME = 0.28, 1.2


def bars(
    values: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    ax: Any,
    *,
    label: str,
    limit: float | None = None,
) -> tuple[Any, Any]:
    """Draw horizontal bars, the first one on top, with intervals as error bars.

    Args:
        values: length of each bar by its name.
        intervals: lower and upper end of the interval of some bars, by name.
        ax: matplotlib axes to draw on; None for a new figure.
        label: label of the axis along the bars.
        limit: end of this axis; None for an end just beyond the longest bar. It begins at 0.

    Returns:
        tuple: matplotlib's figure and axes.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure, axes = _axes(ax, height=_FRAME + _BAR * len(values))
    places = range(len(values))
    axes.barh(places, list(values.values()), height=0.7, alpha=0.6)
    ink = axes.xaxis.label.get_color()  # dark or light, as the style has it
    for place, (name, value) in enumerate(values.items()):
        if name in intervals:
            low, high = intervals[name]
            ends = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, place, xerr=ends, fmt="none", ecolor=ink, capsize=3, lw=1)
    axes.set_yticks(places, list(values))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.05 * max(values.values(), default=1.0) or 1.0)
    if limit is not None:
        axes.set_xlim(0, limit)
    axes.grid(axis="x", alpha=0.3)
    return figure, axes


def steps(
    radii: Sequence[float],
    shares: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    ax: Any,
    *,
    where: str,
    xlabel: str,
    ylabel: str,
    label: str | None = None,
) -> tuple[Any, Any]:
    """Draw a share of points against the radius as steps, in per cent, with a band around it.

    Args:
        radii: radii from 0 up.
        shares: share of points at each radius, in [0, 1].
        intervals: lower and upper end of each share's interval, in [0, 1].
        ax: matplotlib axes to draw on; None for a new figure.
        where: ``"post"`` if a share holds from its radius on, ``"pre"`` if it holds up to it.
        xlabel: label of the radii.
        ylabel: label of the shares.
        label: name of the curve in the legend; None for no legend.

    Returns:
        tuple: matplotlib's figure and axes.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure, axes = _axes(ax, height=3.6)
    low, high = ([100 * ends[side] for ends in intervals] for side in (0, 1))
    (line,) = axes.step(radii, [100 * share for share in shares], where=where, label=label)
    axes.fill_between(radii, low, high, step=where, alpha=0.15, lw=0, color=line.get_color())
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if label is not None:
        axes.legend(fontsize=8)
    return figure, axes


def _axes(ax: Any, *, height: float) -> tuple[Any, Any]:
    """Return the figure of the given axes and the axes, or a new figure with axes.

    Args:
        ax: matplotlib axes, or None.
        height: height of a new figure, in inches.

    Raises:
        TypeError: if ``ax`` is something else.
        ImportError: if matplotlib is not installed.
    """
    if ax is not None:
        if not hasattr(ax, "get_figure") or not hasattr(ax, "barh"):
            raise TypeError(
                f"ax is a {type(ax).__name__}; give one axes object of matplotlib, or None for a "
                "new figure."
            )
        return ax.get_figure(), ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'robust-plugin[plots]'") from error
    return pyplot.subplots(figsize=(6.4, height), layout="constrained")
