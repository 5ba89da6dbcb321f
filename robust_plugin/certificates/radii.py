"""``Certificates``: the predictions of a smoothed classifier with their certified radii."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_plugin.stats import wilson_interval

# The answer of predict and certify for a point whose votes decide nothing.
ABSTAIN = -1


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
        return float(self.certified(radius).float().mean())

    def table(self, radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)) -> str:
        """Return a table, as text, of the certified accuracy at several radii.

        Each line has a radius, the accuracy in per cent, its Wilson 95 % interval and the number of
        points. The last line is the average certified radius.

        Args:
            radii: L2 radii in input units.
        """
        n, lines = len(self.labels), ["radius  certified"]
        for radius in radii:
            count = int(self.certified(radius).sum())
            low, high = (100 * end for end in wilson_interval(count, n))
            lines.append(f"{radius:6.3f}  {100 * count / n:5.1f} [{low:.1f}, {high:.1f}]  n={n}")
        return "\n".join([*lines, f"average certified radius {self.acr:.4f}"])

    def _right(self) -> Tensor:
        return self.predictions == self.labels
