"""Security curves: robust accuracy against the radius, from how far each point had to move."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from robust_plugin.stats import wilson_interval
from robust_plugin.threat.model import Norm, ThreatModel
from robust_plugin.threat.units import parse_eps


@dataclass(frozen=True)
class SecurityCurve:
    """How far an attack had to go, point by point.

    Attributes:
        norm: in which distances are measured.
        distances: in input units; 0 where the point is misclassified as it is, infinite where
            nothing was found. Attacks find upper bounds, so that the curve is one too.

    >>> SecurityCurve("Linf", (0.0, 0.01, 0.05, math.inf)).accuracy("8/255")
    0.5
    """

    norm: Norm
    distances: tuple[float, ...]

    def accuracy(self, eps: float | str) -> float:
        """Return the share of points that stand at a radius, in [0, 1].

        Args:
            eps: radius in input units, a number or a fraction.
        """
        return self._standing(eps) / len(self.distances)

    def interval(self, eps: float | str) -> tuple[float, float]:
        """Return the Wilson 95 % interval of ``accuracy``."""
        return wilson_interval(self._standing(eps), len(self.distances))

    def _standing(self, eps: float | str) -> int:
        radius = parse_eps(eps)
        return sum(d > radius if d else False for d in self.distances)

    @property
    def median(self) -> float:
        """The median distance, the points that are misclassified as they are included."""
        return statistics.median(self.distances)

    def steps(self) -> tuple[tuple[float, float], ...]:
        """Return (radius, accuracy just beyond it) wherever the accuracy falls, for a plot."""
        finite = sorted(d for d in self.distances if math.isfinite(d))
        n = len(self.distances)
        return tuple((d, 1 - (i + 1) / n) for i, d in enumerate(finite))

    def table(self, radii: Sequence[float | str]) -> str:
        """Return a line a radius: as given, as a number, accuracy in per cent, 95 % interval."""
        lines = [f"robust accuracy against eps, {self.norm}, n={len(self.distances)}"]
        for eps in radii:
            low, high = self.interval(eps)
            lines.append(
                f"{eps!s:>9} = {parse_eps(eps):.6f}  {100 * self.accuracy(eps):5.1f} "
                f"[{100 * low:.1f}, {100 * high:.1f}]"
            )
        return "\n".join(lines)


def around(threat: ThreatModel) -> tuple[str, ...]:
    """Return radii from a quarter to four times eps, as fractions where eps is one.

    >>> around(ThreatModel("Linf", "8/255"))
    ('2/255', '4/255', '8/255', '12/255', '16/255', '32/255')
    """
    factors, (above, _, below) = (0.25, 0.5, 1, 1.5, 2, 4), threat.fraction.partition("/")
    return tuple(f"{float(above) * k:g}" + (f"/{below}" if below else "") for k in factors)
