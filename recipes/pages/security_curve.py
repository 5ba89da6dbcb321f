"""Security curves of networks under PGD: the value, its plot, and how to read it.

A curve has the accuracy without an attack, and under PGD at 1/2, 1, 2 and 4 times the eps of the
threat model. ``evaluate/security_curve.py`` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robust_plugin.evaluation.curve import SecurityCurve
from robust_plugin.evaluation.obfuscated_gradients import NOTHING
from robust_plugin.evaluation.obfuscation_verdict import ENOUGH
from robust_plugin.recipes.pages.colors import color_of, style_of
from robust_plugin.recipes.pages.plots import legend
from robust_plugin.recipes.pages.svg import drawing, svg_of
from robust_plugin.threat.model import ThreatModel

# The radii of a curve, as multiples of eps.
FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)
# Distance in eps between the intervals of two networks, and the most for those of all networks.
_APART, _ROOM = 0.05, 0.3

# The values of a line at the radii of a curve: accuracy and both ends of its interval, in [0, 1].
Line = Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class CurveUnderPGD:
    """Security curve of a network, measured by PGD at a few radii.

    Attributes:
        attack: name of the attack, such as ``"PGD-20"``.
        eps: radius of the threat model, in input units.
        largest: largest radius of the attack, in input units: that of the whole box, or 4 eps if
            that is more.
        curve: for each point, the smallest radius at which PGD has fooled it.
    """

    attack: str
    eps: float
    largest: float
    curve: SecurityCurve

    @property
    def line(self) -> Line:
        """Accuracy and Wilson's 95 % interval at the radii of ``FACTORS``, in [0, 1]."""
        radii = [factor * self.eps for factor in FACTORS]
        return [(self.curve.accuracy(r), *self.curve.interval(r)) for r in radii]

    def finding(self, name: str) -> str:
        """Return what looks wrong, in two sentences; empty if nothing does.

        It is the first check for obfuscated gradients (see ``obfuscation``): PGD must fool almost
        all points at a radius that allows every change. As there, fewer than 50 points that are
        right without an attack are too few for a verdict.

        Args:
            name: name of the network.
        """
        right = sum(distance > 0 for distance in self.curve.distances)
        left = sum(distance > self.largest for distance in self.curve.distances)
        if right < ENOUGH or left <= NOTHING * right:
            return ""
        return (
            f"The accuracy of {name} does not fall to nothing where the radius is the whole box: "
            f"{self.attack} leaves {left} of {right} points, and up to {100 * NOTHING:g} % are "
            "allowed. Its robust accuracy is not to be trusted, since gradients may be obfuscated; "
            "robust-plugin evaluate RUN checks that."
        )

    def plain(self) -> dict[str, Any]:
        """Return the curve as a dict, lists, strings and numbers, for JSON, without infinity."""
        found = [d if math.isfinite(d) else None for d in self.curve.distances]
        more = {"eps": self.eps, "largest": self.largest, "distances": found}
        return {"attack": self.attack, "norm": self.curve.norm, **more}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any] | None) -> CurveUnderPGD | None:
        """Return the curve that ``plain`` returned; None for None."""
        if content is None:
            return None
        distances = tuple(math.inf if d is None else d for d in content["distances"])
        curve = SecurityCurve(content["norm"], distances)
        return cls(content["attack"], content["eps"], content["largest"], curve)


@dataclass(frozen=True)
class ShownCurves:
    """The section of a page with security curves.

    Attributes:
        plot: SVG of the curves.
        caption: how to read the plot.
        findings: what looks wrong, one text for each network.
    """

    plot: str
    caption: str
    findings: tuple[str, ...]


def curves_of_run(curves: Mapping[str, CurveUnderPGD]) -> ShownCurves:
    """Return the section of a page for one run: a network before and after pruning.

    Args:
        curves: the security curves, by the names of the networks; at least one.
    """
    found = (curve.finding(name) for name, curve in curves.items())
    return ShownCurves(
        security_plot({name: curve.line for name, curve in curves.items()}, first_of(curves)),
        f"{how_to_read(first_of(curves))} The lines up and down are 95 % intervals.",
        tuple(text for text in found if text),
    )


def first_of(curves: Mapping[str, CurveUnderPGD]) -> CurveUnderPGD:
    """Return the first curve, whose attack and points are those of the others."""
    return next(iter(curves.values()))


def how_to_read(curve: CurveUnderPGD) -> str:
    """Return how to read a plot of curves like this one, in a few sentences."""
    n = len(curve.curve.distances)
    return (
        f"A line shows the share of the first {n:,} test points that {curve.attack}, from one "
        "random start, does not fool within a radius; at 0 it is the accuracy without an attack. "
        "The dotted line marks eps, the radius of the threat model. A stronger attack may find "
        "more, so the true share may be lower."
    )


def security_plot(lines: Mapping[str, Line], curve: CurveUnderPGD) -> str:
    """Return an SVG of robust accuracy against the radius, with one line per network.

    Args:
        lines: accuracies at the radii of ``FACTORS`` with their intervals, by name of the network.
        curve: one of the curves, for the names of the axes.
    """
    figure, axes = drawing(4.8, 3.2)
    apart = min(_APART, _ROOM / len(lines))
    axes.axvline(1, color="black", alpha=0.5, lw=0.8, ls=":")
    for number, (name, line) in enumerate(lines.items()):
        shift = apart * (number - (len(lines) - 1) / 2)  # so that intervals do not overlap
        style, marker = style_of(name)
        values = [[100 * max(0.0, min(1.0, value)) for value in each] for each in zip(*line)]  # noqa: B905
        means, lows, highs = values
        axes.errorbar(
            [factor + shift for factor in FACTORS],
            means,
            yerr=[
                [mean - low for mean, low in zip(means, lows, strict=True)],
                [high - mean for mean, high in zip(means, highs, strict=True)],
            ],
            **{"fmt": marker, "ms": 4, "ls": style, "lw": 1.4, "capsize": 2, "elinewidth": 1},
            color=color_of(name),
            label=name,
        )
    ball = ThreatModel(curve.curve.norm, curve.eps)
    axes.set_xticks(FACTORS, ["0", "½", "1", "2", "4"])
    axes.set(xlabel=f"radius as a multiple of eps, {ball}", ylabel="accuracy, %", ylim=(-2, 102))
    axes.grid(alpha=0.25, lw=0.6)
    legend(figure, axes)
    return svg_of(figure, "robust accuracy against the radius of PGD")
