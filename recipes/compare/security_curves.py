"""The security curves of a comparison: one line per method at the smallest density."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_plugin.recipes.compare.cells import mean_interval
from robust_plugin.recipes.pages.security_curve import (
    CurveUnderPGD,
    Line,
    ShownCurves,
    how_to_read,
    security_plot,
)

# The curves of each seed, by method.
Curves = Mapping[str, Sequence[CurveUnderPGD]]


def stored_curves(folders: Mapping[str, Sequence[Path]]) -> Curves:
    """Return the curves that the reports of runs hold; methods without one are left out.

    Args:
        folders: run folders, one per seed, by method.
    """
    found = {}
    for row, runs in folders.items():
        contents = [json.loads((run / "report.json").read_text()) for run in runs]
        each = [CurveUnderPGD.from_plain(one.get("security_curve")) for one in contents]
        curves = [curve for curve in each if curve is not None]
        if len(curves) == len(runs):
            found[row] = curves
    return found


def mean_line(curves: Sequence[CurveUnderPGD]) -> Line:
    """Return the mean over seeds and its 95 % t interval at each radius, in [0, 1].

    For one seed, the interval is Wilson's over the points.

    Args:
        curves: the curves of a method, one per seed.
    """
    if len(curves) == 1:
        return curves[0].line
    values = zip(*([mean for mean, _, _ in curve.line] for curve in curves), strict=True)
    pairs = [mean_interval(each) for each in values]
    return [(mean, mean - half, mean + half) for mean, half in pairs]


def shown_curves(curves: Curves, density: float) -> ShownCurves | None:
    """Return the section of the page with the curves; None if there are none.

    Args:
        curves: the curves of each seed, by method.
        density: density of the methods, in (0, 1].
    """
    if not curves:
        return None
    first = next(iter(curves.values()))
    lines = {row: mean_line(each) for row, each in curves.items()}
    several = len(first) > 1
    findings = (
        curve.finding(f"{row}, {number}. seed" if several else row)
        for row, each in curves.items()
        for number, curve in enumerate(each, 1)
    )
    interval = "95 % t intervals over the seeds" if several else "95 % intervals"
    what = f"{100 * density:g} % kept{', mean over the seeds' * several}."
    return ShownCurves(
        security_plot(lines, first[0]),
        f"{what} {how_to_read(first[0])} The lines up and down are {interval}.",
        tuple(text for text in findings if text),
    )
