"""``Certificates``: the answers of a smoothed classifier with their certified radii."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_plugin.stats import wilson_interval

# The answer of predict and certify for a point whose votes decide nothing.
ABSTAIN = -1


@dataclass(frozen=True)
class Certificates:
    """The smoothed classifier's answer for each of n points, and the radius it is certified for.

    Attributes:
        predictions: predicted class of each point, shape [n]; ``ABSTAIN`` where the votes decide
            nothing.
        radii: certified L2 radius of each point in input units, shape [n]; no perturbation of
            smaller norm changes the answer. 0 where the classifier abstains.
        labels: true class of each point, shape [n].
    """

    predictions: Tensor
    radii: Tensor
    labels: Tensor

    @property
    def acr(self) -> float:
        """The average certified radius: the mean of the radii, 0 where wrong (Zhai et al. 2020)."""
        return float((self.radii * self._right()).mean())

    def certified(self, radius: float) -> Tensor:
        """Return which points are classified correctly with at least this radius; bool, shape [n].

        Args:
            radius: L2 radius in input units.
        """
        return self._right() & (self.radii >= radius)

    def accuracy(self, radius: float) -> float:
        """Return the certified accuracy at an L2 radius in input units; in [0, 1]."""
        return float(self.certified(radius).float().mean())

    def table(self, radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)) -> str:
        """Return a table of certified accuracy by radius.

        One line per radius: the accuracy in per cent, its Wilson 95 % interval and the number of
        points. The last line is the average certified radius.
        """
        n, lines = len(self.labels), ["radius  certified"]
        for radius in radii:
            count = int(self.certified(radius).sum())
            low, high = (100 * end for end in wilson_interval(count, n))
            lines.append(f"{radius:6.3f}  {100 * count / n:5.1f} [{low:.1f}, {high:.1f}]  n={n}")
        return "\n".join([*lines, f"average certified radius {self.acr:.4f}"])

    def _right(self) -> Tensor:
        return self.predictions == self.labels
