"""``Results``: which points a model gets right, and the figures computed from them.

``Report`` in ``report.py`` is the same value with its printing, saving and reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from robust_plugin.certificates.contract import counted
from robust_plugin.evaluation.curve import SecurityCurve
from robust_plugin.stats import mcnemar, wilson_interval
from robust_plugin.threat.model import ThreatModel

# A row gets a remark if another attack fools more of its points than this share and this number.
_MORE, _FEW = 0.05, 4


@dataclass(frozen=True)
class Results:
    """Which points a model gets right, clean and under each attack.

    A row is ``"clean"`` or the name of an attack. Figures also take ``"worst case"`` and, with a
    certifier, ``"certified"`` as a row.

    Attributes:
        labels: true class of each point.
        flags: by row, whether each point is classified correctly. A point that is wrong clean is
            wrong under every attack. An attack with a limit (see ``evaluate``) has flags of the
            first points only.
        threats: by attack, its threat model.
        findings: sentences about what looked wrong with the model.
        inputs: SHA-256 of the inputs, which tells whether two reports are about the same points.
        certified: whether each point is proved, for the first points if there is a limit; None
            without a certifier.
        certified_threat: threat model of the proofs; None without a certifier.
        distances: by attack, how far each point was moved to fool the model, in input units; 0 if
            it is wrong clean, infinite if it was not fooled. Empty unless one attack searches for
            distances; that attack is the first.
        certifier: name of the certifier; None without one.
        verdicts: the certifier's verdict on each point, such as ``"verified by CROWN"``,
            ``"falsified by PGD"``, ``"misclassified"`` or ``"unknown"``; None without a certifier.
        attacks: by row, the attack or certifier with its settings, in words.
        versions: by name, the versions of this package, torch and the libraries of the rows.
        seed: seed of torch's global generator, which attacks without a seed of their own use; None
            if it is not known.
    """

    labels: tuple[int, ...]
    flags: Mapping[str, tuple[bool, ...]]
    threats: Mapping[str, ThreatModel] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    inputs: str = ""
    certified: tuple[bool, ...] | None = None
    certified_threat: ThreatModel | None = None
    distances: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    certifier: str | None = None
    verdicts: tuple[str, ...] | None = None
    attacks: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None

    @property
    def remarks(self) -> dict[str, str]:
        """By attack, why its robust accuracy may be too high; no entry without a reason.

        There are two reasons: findings, which concern the network and so all its attacks, and
        another attack within the same ball that fools points which this attack did not fool.
        """
        said: dict[str, list[str]] = {}
        for row, threat in self.threats.items():
            if self.findings:
                said.setdefault(row, []).append("doubtful, see the findings")
            for other, ball in self.threats.items():
                both = list(zip(self.flags[row], self.flags[other], strict=False))
                missed = sum(mine and not theirs for mine, theirs in both)
                if threat.covers(ball) and missed > max(_FEW, _MORE * len(both)):
                    said.setdefault(row, []).append(f"{other} fools {missed} points that it leaves")
        return {row: "; ".join(each) for row, each in said.items()}

    @property
    def threat(self) -> str | None:
        """The threat models of attacks and proofs in words; None without any."""
        balls = [*self.threats.values()]
        balls += [self.certified_threat] if self.certified_threat else []
        return "; ".join(sorted({str(threat) for threat in balls})) or None

    @property
    def rows(self) -> tuple[str, ...]:
        """``"clean"`` and the names of the attacks."""
        return tuple(self.flags)

    @property
    def n(self) -> int:
        """Number of points that were evaluated."""
        return len(self.labels)

    @property
    def worst(self) -> tuple[bool, ...]:
        """Whether each point is right clean and under every attack.

        It covers the first points, which all attacks have seen.
        """
        return tuple(all(each) for each in zip(*self.flags.values(), strict=False))

    @property
    def curve(self) -> SecurityCurve | None:
        """Robust accuracy by radius; None unless an attack searches for distances.

        The distance of a point is the smallest of all attacks in the norm of the searching attack.
        """
        if not self.distances:
            return None
        norm = self.threats[next(iter(self.distances))].norm
        each = [d for row, d in self.distances.items() if self.threats[row].norm == norm]
        return SecurityCurve(norm, tuple(min(found) for found in zip(*each, strict=False)))

    @property
    def proofs(self) -> str | None:
        """The number of points per verdict of the certifier, in words; None without a certifier."""
        if self.verdicts is None:
            return None
        return ", ".join(f"{n} {words}" for words, n in counted(self.verdicts).items())

    def accuracy(self, row: str = "clean") -> float:
        """Return the share of a row's points that are right (or certified), in [0, 1]."""
        flags = self._row(row)
        return sum(flags) / len(flags)

    def interval(self, row: str = "clean") -> tuple[float, float]:
        """Return the Wilson 95 % interval of ``accuracy``."""
        flags = self._row(row)
        return wilson_interval(sum(flags), len(flags))

    def per_class(self, row: str = "clean") -> dict[int, float]:
        """Return a row's accuracy, in [0, 1], by class, for each class that has points."""
        flags = self._row(row)
        found: dict[int, list[bool]] = {}
        for label, right in zip(self.labels, flags, strict=False):
            found.setdefault(label, []).append(right)
        return {label: sum(each) / len(each) for label, each in sorted(found.items())}

    def balanced(self, row: str = "clean") -> float:
        """Return a row's balanced accuracy, the mean of its classes' accuracies, in [0, 1]."""
        each = self.per_class(row)
        return sum(each.values()) / len(each)

    def _row(self, row: str) -> tuple[bool, ...]:
        """Return the flags of a row, also of ``"worst case"`` and ``"certified"``."""
        if row == "worst case":
            return self.worst
        if row == "certified" and self.certified is not None:
            return self.certified
        if row not in self.flags:
            more = ["worst case", *(["certified"] if self.certified is not None else [])]
            raise ValueError(f"row is {row!r}; legal: {[*self.rows, *more]}.")
        return self.flags[row]

    def compare(self, other: Results, row: str = "clean") -> float:
        """Return McNemar's exact p-value that two models are right equally often in a row.

        Args:
            other: the report of the other model, on the same points.
            row: the row to compare.

        Raises:
            TypeError: if ``other`` is not a report.
            ValueError: if the points or the row's threat models differ.
        """
        if not isinstance(other, Results):
            raise TypeError(f"other is a {type(other).__name__}; give a Report.")
        mine, theirs = self._row(row), other._row(row)
        if self.labels != other.labels or self.inputs != other.inputs:
            raise ValueError("the two reports are not of the same test points.")
        one, two = (report._threats_of(row) for report in (self, other))
        if one != two:
            shown = [", ".join(map(str, each)) or "no threat model" for each in (one, two)]
            raise ValueError(f"one report's {row} is of {shown[0]}, the other's of {shown[1]}.")
        return mcnemar(mine, theirs)

    def _threats_of(self, row: str) -> list[ThreatModel]:
        """Return the threat models of a row; the worst case has those of all attacks."""
        if row == "worst case":
            return sorted(set(self.threats.values()), key=repr)
        found = self.certified_threat if row == "certified" else self.threats.get(row)
        return [] if found is None else [found]

    def refuse_contradiction(self) -> None:
        """Raise if a point is certified and an attack within the certified ball fooled it.

        Then the certificate is wrong, or attack and certifier saw different networks.

        Raises:
            ValueError: for such a point; the message names the point and the attack.
        """
        for row, threat in self.threats.items():
            if self.certified_threat is None or not self.certified_threat.covers(threat):
                continue
            for point, pair in enumerate(zip(self.certified or (), self.flags[row], strict=False)):
                if pair == (True, False):
                    raise ValueError(
                        f"point {point} is certified in {self.certified_threat} and {row} fools it "
                        f"in {threat}; the certificate is wrong. Do not trust this certifier."
                    )
