"""``Certificates``: the predictions of a smoothed classifier with their certified radii."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.plots import steps
from robust_plugin.runtime.tables import html_lines, html_table
from robust_plugin.stats import wilson_interval

# The answer of predict and certify for a point whose votes decide nothing.
ABSTAIN = -1
# The radii of a table.
_RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@explain_wrong_calls
@dataclass(frozen=True)
class Certificates:
    """The prediction of a smoothed classifier for each of n points, and its certified radius.

    Attributes:
        predictions: predicted class of each point, shape [n]; ``ABSTAIN`` (-1) where the votes are
            too close for a certificate.
        radii: certified L2 radius of each point in input units, shape [n]; no perturbation of
            smaller norm changes the prediction. 0 where the classifier abstains.
        labels: true class of each point, shape [n].
    """

    predictions: Tensor
    radii: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        """Return one line: the certified accuracy at radius 0 and the average certified radius."""
        n = len(self.labels)
        return (
            f"Certificates(n={n}, certified accuracy {100 * self.accuracy(0.0):.1f} %, average "
            f"certified radius {self.acr:.4f})"
        )

    def _repr_html_(self) -> str:
        """Return the table of ``table()`` in HTML for notebooks."""
        rows = [["radius", "certified accuracy, %", "95 % interval"]]
        for radius in _RADII:
            low, high = (100 * end for end in self._interval(radius))
            share = 100 * self.accuracy(radius)
            rows.append([f"{radius:.2f}", f"{share:.1f}", f"{low:.1f} to {high:.1f}"])
        below = [f"average certified radius {self.acr:.4f}, n={len(self.labels)}"]
        return f"{html_table(rows, align='>>>')}\n{html_lines(below)}"

    def plot(self, ax: Any = None, *, label: str | None = None) -> tuple[Any, Any]:
        """Draw the certified accuracy in per cent against the L2 radius, with its 95 % band.

        Args:
            ax: matplotlib axes to draw on; None for a new figure. Several curves can be drawn on
                the same axes.
            label: name of the curve in the legend, such as the noise level; None for no legend.

        Returns:
            tuple: matplotlib's figure and axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        radii = sorted({0.0, *self.radii[self.certified(0.0)].tolist()})
        return steps(
            radii,
            [self.accuracy(radius) for radius in radii],
            [self._interval(radius) for radius in radii],
            ax,
            where="pre",
            xlabel="L2 radius, input units",
            ylabel=f"certified accuracy, %; n={len(self.labels)}",
            label=label,
        )

    @property
    def acr(self) -> float:
        """The average certified radius (Zhai et al. 2020).

        It is the mean of the radii, with 0 for the points that are not classified correctly.
        """
        return float((self.radii * self._right()).mean())

    def certified(self, radius: float) -> Tensor:
        """Return which points are classified correctly and certified for at least this radius.

        Args:
            radius: L2 radius in input units.

        Returns:
            Tensor: bool, shape [n].
        """
        return self._right() & (self.radii >= radius)

    def accuracy(self, radius: float) -> float:
        """Return the certified accuracy at a radius: the share of ``certified`` points, in [0, 1].

        Args:
            radius: L2 radius in input units.
        """
        return int(self.certified(radius).sum()) / len(self.labels)

    def table(self, radii: tuple[float, ...] = _RADII) -> str:
        """Return a table, as text, of the certified accuracy at several radii.

        Each line has a radius, the accuracy in per cent, its Wilson 95 % interval and the number of
        points. The last line is the average certified radius.

        Args:
            radii: L2 radii in input units.
        """
        n, lines = len(self.labels), ["radius  certified"]
        for radius in radii:
            low, high = (100 * end for end in self._interval(radius))
            share = 100 * self.accuracy(radius)
            lines.append(f"{radius:6.3f}  {share:5.1f} [{low:.1f}, {high:.1f}]  n={n}")
        return "\n".join([*lines, f"average certified radius {self.acr:.4f}"])

    def _interval(self, radius: float) -> tuple[float, float]:
        """Return the Wilson 95 % interval of the certified accuracy at a radius, in [0, 1]."""
        return wilson_interval(int(self.certified(radius).sum()), len(self.labels))

    def _right(self) -> Tensor:
        return self.predictions == self.labels
