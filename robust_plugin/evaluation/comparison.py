"""``Comparison``: which of two networks is better on the same test points, and by how much.

``Report.compare`` returns it.
"""

from __future__ import annotations

from dataclasses import dataclass

from robust_plugin.stats import paired_interval, sign_test

# A difference with a larger p-value of McNemar's test may be chance.
_CLEAR = 0.05


@dataclass(frozen=True)
class Comparison:
    """One kind of accuracy of two networks on the same n points, as a paired difference.

    ``print`` shows one sentence. The interval is Tango's score interval of a paired difference
    (``robust_plugin.stats.paired_interval``); it uses that both networks were judged on the same
    points, as intervals of the two accuracies do not.

    Attributes:
        row: the accuracy that is compared: ``"clean"``, the name of an attack, ``"worst case"`` or
            ``"certified"``.
        name: name of the first network.
        other_name: name of the second network.
        n11: number of points that both networks get right (or that are certified for both).
        n10: number of points that only the first network gets right.
        n01: number of points that only the second network gets right.
        n00: number of points that neither network gets right.
        extra_epochs: by how many epochs the first network was trained longer than the second;
            below 0 if it was trained less.

    Raises:
        ValueError: for two equal names, a count below 0, or no points.

    >>> Comparison("PGD-10", "pruned", "dense", n11=70, n10=12, n01=2, n00=16)
    Comparison(PGD-10: pruned - dense = +10.0 points [+3.1, +18.2], p=0.013, n=100)
    """

    row: str
    name: str
    other_name: str
    n11: int
    n10: int
    n01: int
    n00: int
    extra_epochs: int = 0

    def __post_init__(self) -> None:
        if self.name == self.other_name:
            raise ValueError(f"both networks are called {self.name!r}; give two different names.")
        if min(self.n11, self.n10, self.n01, self.n00) < 0 or self.n == 0:
            raise ValueError(
                f"the counts are {self.n11}, {self.n10}, {self.n01} and {self.n00}; legal: 0 or "
                "more, and at least one point in all."
            )

    @property
    def n(self) -> int:
        """Number of points."""
        return self.n11 + self.n10 + self.n01 + self.n00

    @property
    def accuracy(self) -> float:
        """Accuracy of the first network on these points, in [0, 1]."""
        return (self.n11 + self.n10) / self.n

    @property
    def other_accuracy(self) -> float:
        """Accuracy of the second network on these points, in [0, 1]."""
        return (self.n11 + self.n01) / self.n

    @property
    def difference(self) -> float:
        """Accuracy of the first network minus that of the second, in [-1, 1]."""
        return (self.n10 - self.n01) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The two ends of the 95 % interval of ``difference``, in [-1, 1]."""
        return paired_interval(self.n10, self.n01, self.n)

    @property
    def p(self) -> float:
        """P-value of McNemar's exact test that both networks are right equally often."""
        return sign_test(self.n10, self.n01)

    @property
    def better(self) -> str | None:
        """Name of the better network; None if p >= 0.05, where the difference may be chance."""
        if self.p >= _CLEAR:
            return None
        return self.name if self.difference > 0 else self.other_name

    def __str__(self) -> str:
        """Return one sentence: which network is better, by how much, and how sure this is.

        Numbers are in the order of the names in the sentence, the better network first.
        """
        ahead = self if self.difference >= 0 else self._swapped
        first, second = ahead.name, ahead.other_name
        low, high = (100 * end for end in ahead.interval)
        said = f"{first} is better than {second} {self._measure}"
        if self.better is None:
            said = f"no clear difference between {first} and {second} {self._measure}"
        return (
            f"{said}: {100 * ahead.accuracy:.1f} % against {100 * ahead.other_accuracy:.1f} % of "
            f"{self.n} points, {100 * ahead.difference:+.1f} points, 95 % interval [{low:+.1f}, "
            f"{high:+.1f}], McNemar's exact p = {self.p:.2g} (only {first} is right at "
            f"{ahead.n10}, only {second} at {ahead.n01}){self._training}"
        )

    def __repr__(self) -> str:
        """Return the difference with its interval, p-value and number of points."""
        low, high = (100 * end for end in self.interval)
        return (
            f"Comparison({self.row}: {self.name} - {self.other_name} = "
            f"{100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}], p={self.p:.2g}, "
            f"n={self.n})"
        )

    @property
    def _swapped(self) -> Comparison:
        """The same comparison with the second network first."""
        names, counts = (self.other_name, self.name), (self.n11, self.n01, self.n10, self.n00)
        return Comparison(self.row, *names, *counts, -self.extra_epochs)

    @property
    def _measure(self) -> str:
        words = {"clean": "on clean inputs", "worst case": "in the worst case"}
        return words.get(self.row, "in proofs" if self.row == "certified" else f"under {self.row}")

    @property
    def _training(self) -> str:
        """That one of the networks was trained longer, in words; empty if none was."""
        if not self.extra_epochs:
            return ""
        pair = (self.name, self.other_name)
        longer, shorter = pair if self.extra_epochs > 0 else pair[::-1]
        epochs = abs(self.extra_epochs)
        return f"; {longer} was trained {epochs} epoch{'s' * (epochs > 1)} longer than {shorter}"
