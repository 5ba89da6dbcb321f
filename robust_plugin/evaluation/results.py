"""``Results``: which points a model gets right, and the accuracies computed from them.

``Report`` in ``report.py`` adds methods that print, save and read the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from robust_plugin.certificates.contract import counted
from robust_plugin.evaluation.comparison import Comparison
from robust_plugin.evaluation.curve import SecurityCurve
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.tables import listed
from robust_plugin.stats import wilson_interval
from robust_plugin.threat.model import ThreatModel

# A row gets a remark if another attack fools more of its points than this share and this number.
_MORE, _FEW = 0.05, 4


@explain_wrong_calls
@dataclass(frozen=True)
class Results:
    """Which points a model classifies correctly, clean and under each attack.

    The methods take the name of one of the report's rows. It is ``"clean"`` or the name of an
    attack, ``"worst case"`` (clean and all attacks together) or, with a certifier, ``"certified"``.

    Attributes:
        labels: true class of each point.
        flags: for ``"clean"`` and for each attack, whether each point is classified correctly. A
            point that is misclassified without an attack counts as wrong under every attack. An
            attack with a limit (see ``evaluate``) has flags of the first points only.
        threats: threat model of each attack, by the attack's name.
        findings: sentences about what looked wrong with the model.
        inputs: SHA-256 of the inputs, which tells whether two reports are about the same points.
        certified: whether each point is proved, for the first points if there is a limit; None
            without a certifier.
        certified_threat: threat model of the proofs; None without a certifier.
        distances: for each attack, the distance of each point to its adversarial example, in input
            units; 0 if the point is misclassified without an attack, infinite if it was not fooled.
            Empty unless one attack searches for the smallest distance; that attack is the first.
        certifier: name of the certifier; None without one.
        verdicts: the certifier's verdict on each point, such as ``"verified by CROWN"``,
            ``"falsified by PGD"``, ``"misclassified"`` or ``"unknown"``; None without a certifier.
        attacks: each attack, and the certifier as ``"certified"``, with its settings in words.
        versions: versions of this package, of torch and of the libraries of the attacks and the
            certifier, by the library's name.
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
        """Why the robust accuracy under an attack may be wrong, by the attack's name.

        There are two reasons: ``findings``, which concern the model and so all attacks, and another
        attack within the same ball that fools many points which this attack did not fool. An attack
        with neither is not in the dict.
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
        """The threat models of attacks and proofs in words; None if there are none."""
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
        """Whether each point is classified correctly clean and under every attack.

        If attacks have limits, these are the first points only, which all attacks have got.
        """
        return tuple(all(each) for each in zip(*self.flags.values(), strict=False))

    @property
    def curve(self) -> SecurityCurve | None:
        """Robust accuracy by radius; None unless an attack searches for the smallest distance.

        The distance of a point is the smallest one over all attacks in the norm of the searching
        attack.
        """
        if not self.distances:
            return None
        norm = self.threats[next(iter(self.distances))].norm
        each = [d for row, d in self.distances.items() if self.threats[row].norm == norm]
        return SecurityCurve(norm, tuple(min(found) for found in zip(*each, strict=False)))

    @property
    def proofs(self) -> str | None:
        """How many points got each verdict of the certifier, in words; None without a certifier."""
        if self.verdicts is None:
            return None
        return ", ".join(f"{n} {words}" for words, n in counted(self.verdicts).items())

    def __repr__(self) -> str:
        """Return one line: the number of points and the accuracies in per cent."""
        more = ["worst case"] if len(self.flags) > 2 else []
        more += [] if self.certified is None else ["certified"]
        shown = [f"{row} {100 * self.accuracy(row):.1f} %" for row in (*self.rows, *more)]
        return f"{type(self).__name__}(n={self.n}: {listed(shown)})"

    def accuracy(self, row: str = "clean") -> float:
        """Return the share of points that are classified correctly (or certified), in [0, 1].

        Args:
            row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
        """
        flags = self._row(row)
        return sum(flags) / len(flags)

    def interval(self, row: str = "clean") -> tuple[float, float]:
        """Return the Wilson 95 % interval of ``accuracy``.

        Args:
            row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
        """
        flags = self._row(row)
        return wilson_interval(sum(flags), len(flags))

    def per_class(self, row: str = "clean") -> dict[int, float]:
        """Return the accuracy on the points of each class, in [0, 1], by class.

        Classes without points are left out.

        Args:
            row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
        """
        flags = self._row(row)
        found: dict[int, list[bool]] = {}
        for label, right in zip(self.labels, flags, strict=False):
            found.setdefault(label, []).append(right)
        return {label: sum(each) / len(each) for label, each in sorted(found.items())}

    def balanced(self, row: str = "clean") -> float:
        """Return the balanced accuracy, the mean of the accuracies on each class, in [0, 1].

        Args:
            row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
        """
        each = self.per_class(row)
        return sum(each.values()) / len(each)

    def _row(self, row: str) -> tuple[bool, ...]:
        """Return whether each point is classified correctly (or certified).

        Args:
            row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.

        Raises:
            ValueError: for any other name.
        """
        if row == "worst case":
            return self.worst
        if row == "certified" and self.certified is not None:
            return self.certified
        if row not in self.flags:
            more = ["worst case", *(["certified"] if self.certified is not None else [])]
            raise ValueError(f"row is {row!r}; legal: {[*self.rows, *more]}.")
        return self.flags[row]

    def compare(
        self,
        other: Results,
        row: str = "clean",
        *,
        name: str = "this network",
        other_name: str = "the other network",
        extra_epochs: int = 0,
    ) -> Comparison:
        """Return which of two networks is better on the same points, by how much, and how surely.

        If one report has more points in this row, the first points are compared, which both have.

        Args:
            other: the report of the other network, on the same points.
            row: what to compare: ``"clean"``, the name of an attack, ``"worst case"`` or
                ``"certified"``.
            name: what the text calls the network of this report.
            other_name: what the text calls the network of ``other``.
            extra_epochs: by how many epochs the network of this report was trained longer. A pruned
                network is usually trained longer than its dense parent, and the text then says so.

        Raises:
            TypeError: if ``other`` is not a report.
            ValueError: if the points or the threat models of the two reports differ.
        """
        if not isinstance(other, Results):
            raise TypeError(f"other is a {type(other).__name__}; give a Report.")
        pairs = list(zip(self._row(row), other._row(row), strict=False))
        if self.labels != other.labels or self.inputs != other.inputs:
            raise ValueError(
                "the two reports are not of the same test points; evaluate both networks on one "
                "loader that does not shuffle."
            )
        one, two = (report._threats_of(row) for report in (self, other))
        if one != two:
            shown = [", ".join(map(str, each)) or "no threat model" for each in (one, two)]
            raise ValueError(f"one report's {row} is of {shown[0]}, the other's of {shown[1]}.")
        return Comparison(
            row,
            name,
            other_name,
            n11=pairs.count((True, True)),
            n10=pairs.count((True, False)),
            n01=pairs.count((False, True)),
            n00=pairs.count((False, False)),
            extra_epochs=extra_epochs,
        )

    def _threats_of(self, row: str) -> list[ThreatModel]:
        """Return the threat models behind an accuracy: none, one, or those of all attacks.

        Args:
            row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
        """
        if row == "worst case":
            return sorted(set(self.threats.values()), key=repr)
        found = self.certified_threat if row == "certified" else self.threats.get(row)
        return [] if found is None else [found]

    def refuse_contradiction(self) -> None:
        """Raise if a point is certified and an attack within the certified ball has fooled it.

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
