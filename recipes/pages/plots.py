"""Plots that several commands share, and how a plot is drawn and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_plugin.certificates.radii import Certificates
from robust_plugin.runtime.files import replacing
from robust_plugin.stats import wilson_interval

# Line styles; the next one is taken after matplotlib's ten colours are used up.
STYLES = ("-", "--", ":", "-.")


def plot_radii(found: Certificates, sigma: float, path: Path) -> None:
    """Plot certified accuracy against the L2 radius, with Wilson's 95 % band, to a PNG file.

    Args:
        found: certificates of randomized smoothing.
        sigma: standard deviation of the noise, for the legend.
        path: the PNG file.
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


def plot_kept(kept: Mapping[str, Mapping[str, Sequence[int]]], path: Path) -> None:
    """Plot the share of weights or channels that each layer keeps, with one line per network.

    Args:
        kept: [number kept, size] by name of the network, then by layer or channel group.
        path: the PNG file to write.
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


def pyplot() -> Any:
    """Return matplotlib.pyplot with a backend that only draws to files."""
    import matplotlib

    matplotlib.use("Agg")  # opens no window, so that it works without a display
    from matplotlib import pyplot

    return pyplot


def save_plot(figure: Any, path: Path) -> None:
    """Write a matplotlib figure to a PNG file and close the figure.

    An interruption never leaves half a file.

    Args:
        figure: the figure.
        path: the PNG file.
    """
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    pyplot().close(figure)
