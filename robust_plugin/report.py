"""What an evaluation found: a value with every point's verdict, intervals and comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The 97.5 % point of the normal distribution: intervals are 95 %.
_Z = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the Wilson 95 % score interval of a share of ``n`` points.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927.

    >>> tuple(round(end, 3) for end in wilson_interval(45, 100))
    (0.356, 0.548)
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, _Z * _Z
    centre = p + z2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the exact two-sided p-value that two classifiers are right equally often.

    On the points where exactly one is right, b and c of them: 2 P(Binomial(b + c, 1/2) <=
    min(b, c)), at most 1 (McNemar 1947, exact form).

    Raises:
        ValueError: unless both speak of the same number of points.

    >>> mcnemar([True] * 6, [False] * 6)
    0.03125
    """
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} points against {len(second)}; compare on the same test points."
        )
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**n))


@dataclass(frozen=True)
class Report:
    """Which points a model gets right, clean and under each attack.

    Attributes:
        labels: of each point.
        flags: for ``"clean"`` and each attack, whether each point is right; a point that is
            wrong clean is wrong under every attack.
            An attack given fewer points (see ``limits``) speaks of the first ones only.
        threat: the threat model in words, or None without attacks.
        findings: what looked wrong with the model.
        inputs: SHA-256 of the inputs, by which reports know that they are of the same points.
    """

    labels: tuple[int, ...]
    flags: Mapping[str, tuple[bool, ...]]
    threat: str | None = None
    findings: tuple[str, ...] = field(default=())
    inputs: str = ""

    @property
    def rows(self) -> tuple[str, ...]:
        """``"clean"`` and the attacks."""
        return tuple(self.flags)

    @property
    def n(self) -> int:
        """How many points were evaluated."""
        return len(self.labels)

    @property
    def worst(self) -> tuple[bool, ...]:
        """Whether each point withstands every attack; the points all attacks have seen."""
        return tuple(all(each) for each in zip(*self.flags.values(), strict=False))

    def accuracy(self, row: str = "clean") -> float:
        """Return the share of a row's points that are right, in [0, 1]."""
        flags = self._row(row)
        return sum(flags) / len(flags)

    def interval(self, row: str = "clean") -> tuple[float, float]:
        """Return the Wilson 95 % interval of ``accuracy``."""
        flags = self._row(row)
        return wilson_interval(sum(flags), len(flags))

    def per_class(self, row: str = "clean") -> dict[int, float]:
        """Return the accuracy of each class that has points."""
        flags = self._row(row)
        found: dict[int, list[bool]] = {}
        for label, right in zip(self.labels, flags, strict=False):
            found.setdefault(label, []).append(right)
        return {label: sum(each) / len(each) for label, each in sorted(found.items())}

    def balanced(self, row: str = "clean") -> float:
        """Return the mean of the classes' accuracies."""
        each = self.per_class(row)
        return sum(each.values()) / len(each)

    def _row(self, row: str) -> tuple[bool, ...]:
        if row == "worst case":
            return self.worst
        if row not in self.flags:
            raise ValueError(f"row is {row!r}; legal: {[*self.rows, 'worst case']}.")
        return self.flags[row]

    def compare(self, other: Report, row: str = "clean") -> float:
        """Return McNemar's exact p-value against another model's report on the same points.

        Raises:
            TypeError: if it is no report.
            ValueError: if the points, or of an attack's row the threat models, differ.
        """
        if not isinstance(other, Report):
            raise TypeError(f"other is a {type(other).__name__}; give a Report.")
        mine, theirs = self._row(row), other._row(row)
        if self.labels != other.labels or self.inputs != other.inputs:
            raise ValueError("the two reports are not of the same test points.")
        if row != "clean" and self.threat != other.threat:
            raise ValueError(f"one report is of {self.threat}, the other of {other.threat}.")
        return mcnemar(mine, theirs)

    def to_json(self) -> str:
        """Return everything as JSON; accuracies in RobustBench's per cent fields first."""
        robust = self.worst if len(self.flags) > 1 else None
        content: dict[str, Any] = {
            "clean_acc": 100 * self.accuracy(),
            "autoattack_acc": 100 * self.accuracy("AutoAttack")
            if "AutoAttack" in self.flags
            else None,
            "worst_case_acc": 100 * sum(robust) / len(robust) if robust else None,
            "threat": self.threat,
            "n": {row: len(flags) for row, flags in self.flags.items()},
            "findings": list(self.findings),
            "inputs": self.inputs,
            "labels": list(self.labels),
            "flags": {row: "".join("01"[f] for f in flags) for row, flags in self.flags.items()},
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what ``to_json`` wrote."""
        content = json.loads(text)
        flags = {
            row: tuple(char == "1" for char in chars) for row, chars in content["flags"].items()
        }
        return cls(
            tuple(content["labels"]),
            flags,
            content["threat"],
            tuple(content["findings"]),
            content["inputs"],
        )

    def __str__(self) -> str:
        """Return a table: accuracy in per cent, 95 % interval, n, balanced accuracy."""
        rows = {row: row for row in self.rows}
        if len(self.flags) > 2:
            some = len(self.worst) < self.n
            rows["worst case"] = (
                f"worst case of the first {len(self.worst)}" if some else "worst case"
            )
        width = max(len(shown) for shown in rows.values())
        lines = [f"threat model: {self.threat}"] if self.threat else []
        for row, shown in rows.items():
            low, high = self.interval(row)
            lines.append(
                f"{shown:<{width}}  {100 * self.accuracy(row):5.1f} "
                f"[{100 * low:.1f}, {100 * high:.1f}]  n={len(self._row(row))}  "
                f"balanced {100 * self.balanced(row):.1f}"
            )
        return "\n".join([*lines, *(f"finding: {text}" for text in self.findings)])
