"""Security curves: the robust accuracy of a model as a function of the attack's radius.

A curve is computed from one distance per point, that to the closest adversarial example that
attacks have found.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.plots import steps
from robust_plugin.runtime.tables import html_lines, html_table
from robust_plugin.stats import wilson_interval
from robust_plugin.threat.model import Norm, ThreatModel
from robust_plugin.threat.units import parse_eps


@explain_wrong_calls
@dataclass(frozen=True)
class SecurityCurve:
    """Robust accuracy by radius, from each point's distance to its closest adversarial example.

    Attributes:
        norm: norm in which distances are measured.
        distances: one distance per point, in input units; 0 if the clean point is misclassified,
            infinite if no adversarial example was found. Attacks find upper bounds of the smallest
            distance, so the curve is an upper bound of robust accuracy.

    >>> SecurityCurve("Linf", (0.0, 0.01, 0.05, math.inf)).accuracy("8/255")
    0.5
    """

    norm: Norm
    distances: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.distances) == 0:
            raise ValueError("distances is empty; give one distance per point.")

    def accuracy(self, eps: float | str) -> float:
        """Return the robust accuracy at a radius, in [0, 1].

        This is the share of points that no attack within the radius fools.

        Args:
            eps: radius in input units, a number or a fraction such as ``"8/255"``.
        """
        return self._robust_points(eps) / len(self.distances)

    def interval(self, eps: float | str) -> tuple[float, float]:
        """Return the Wilson 95 % interval of ``accuracy`` at a radius.

        Args:
            eps: radius in input units, a number or a fraction such as ``"8/255"``.
        """
        return wilson_interval(self._robust_points(eps), len(self.distances))

    def _robust_points(self, eps: float | str) -> int:
        radius = parse_eps(eps)
        return sum(d > radius if d else False for d in self.distances)

    @property
    def median(self) -> float:
        """The median distance of all points; a misclassified point counts as 0."""
        return statistics.median(self.distances)

    def steps(self) -> tuple[tuple[float, float], ...]:
        """Return the steps of the curve, sorted by radius.

        There is one pair for each point with a finite distance: this distance, and the accuracy
        just above it.
        """
        finite = sorted(d for d in self.distances if math.isfinite(d))
        n = len(self.distances)
        return tuple((d, 1 - (i + 1) / n) for i, d in enumerate(finite))

    def __repr__(self) -> str:
        """Return one line: the norm, the number of points and the median distance."""
        n = len(self.distances)
        return f"SecurityCurve({self.norm}, n={n}, median distance {self.median:.4g})"

    def _repr_html_(self) -> str:
        """Return a table in HTML for notebooks, with six radii up to the largest distance."""
        farthest = max((d for d in self.distances if math.isfinite(d)), default=0.0)
        rows = [["eps", "robust accuracy, %", "95 % interval"]]
        for eps in sorted({farthest * part / 5 for part in range(6)}):
            low, high = (100 * end for end in self.interval(eps))
            rows.append(
                [f"{eps:.4f}", f"{100 * self.accuracy(eps):.1f}", f"{low:.1f} to {high:.1f}"]
            )
        above = [f"robust accuracy against eps, {self.norm}, n={len(self.distances)}"]
        return f"{html_lines(above)}\n{html_table(rows, align='>>>')}"

    def plot(self, ax: Any = None, *, label: str | None = None) -> tuple[Any, Any]:
        """Draw the robust accuracy in per cent against the radius, with its 95 % band.

        Args:
            ax: matplotlib axes to draw on; None for a new figure. Several curves can be drawn on
                the same axes.
            label: name of the curve in the legend; None for no legend.

        Returns:
            tuple: matplotlib's figure and axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        n, zeros = len(self.distances), self.distances.count(0.0)
        finite = [d for d in sorted(self.distances) if 0 < d < math.inf]
        counts = [n - zeros - fooled for fooled in range(len(finite) + 1)]
        return steps(
            [0.0, *finite],
            [count / n for count in counts],
            [wilson_interval(count, n) for count in counts],
            ax,
            where="post",
            xlabel=f"{self.norm} radius, input units",
            ylabel=f"robust accuracy, %; n={n}",
            label=label,
        )

    def table(self, radii: Sequence[float | str]) -> str:
        """Return a table, as text, with one line per radius.

        A line has the radius as given and as a decimal number, the accuracy in per cent, and the
        95 % interval of the accuracy.

        Args:
            radii: radii in input units, numbers or fractions.
        """
        if isinstance(radii, str) or not isinstance(radii, Sequence):
            raise TypeError(f'radii is {radii!r}; give a list, such as ["4/255", "8/255"].')
        lines = [f"robust accuracy against eps, {self.norm}, n={len(self.distances)}"]
        for eps in radii:
            low, high = self.interval(eps)
            lines.append(
                f"{eps!s:>9} = {parse_eps(eps):.6f}  {100 * self.accuracy(eps):5.1f} "
                f"[{100 * low:.1f}, {100 * high:.1f}]"
            )
        return "\n".join(lines)


def around(threat: ThreatModel) -> tuple[str, ...]:
    """Return six radii, as strings, from a quarter of a threat model's eps to four times eps.

    They are fractions if eps is a fraction.

    >>> around(ThreatModel("Linf", "8/255"))
    ('2/255', '4/255', '8/255', '12/255', '16/255', '32/255')
    """
    factors, (above, _, below) = (0.25, 0.5, 1, 1.5, 2, 4), threat.fraction.partition("/")
    return tuple(f"{float(above) * k:g}" + (f"/{below}" if below else "") for k in factors)
