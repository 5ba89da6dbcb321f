"""What an evaluation found: a value with every point's verdict, intervals and comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from robust_plugin.certificates.contract import counted
from robust_plugin.evaluation.curve import SecurityCurve
from robust_plugin.stats import mcnemar, wilson_interval
from robust_plugin.threat.model import ThreatModel

# What a row says of others that fooled its points: a share of them, or so many.
_MORE, _FEW = 0.05, 4

__all__ = ["Report", "mcnemar", "wilson_interval"]


@dataclass(frozen=True)
class Report:
    """Which points a model gets right, clean and under each attack.

    Attributes:
        labels: of each point.
        flags: for ``"clean"`` and each attack, whether each point is right; a point that is
            wrong clean is wrong under every attack.
            An attack given fewer points (see ``limits``) speaks of the first ones only.
        threats: each attack's threat model.
        findings: what looked wrong with the model.
        inputs: SHA-256 of the inputs, by which reports know that they are of the same points.
        certified: whether each point is proved; None without a certifier.
        certified_threat: in which threat model.
        distances: where an attack looks for distances: by attack, that one first, how far each
            point was moved to fool it; 0 where it is wrong clean, infinite where it withstood.
        certifier: what the certifier calls itself.
        verdicts: what the certifier knows of each point, such as ``"verified by CROWN"``,
            ``"falsified by PGD"``, ``"misclassified"`` or ``"unknown"``.
        attacks: by row, the attack or certifier with its settings, in words.
        versions: of this package, torch and the libraries behind the rows, by name.
        seed: of torch's global generator, from which attacks without a seed of their own drew.
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
        """Why a row's robust accuracy is too high, by row; nothing of a row without reason.

        The findings speak of the network, and so of all its attacks. Another attack within the
        same ball may have fooled points that this one left.
        """
        said: dict[str, list[str]] = {}
        for row, threat in self.threats.items():
            if self.findings:
                said.setdefault(row, []).append("doubtful, see the findings")
            for other, ball in self.threats.items():
                both = list(zip(self.flags[row], self.flags[other], strict=False))
                missed = sum(stands and not there for stands, there in both)
                if threat.covers(ball) and missed > max(_FEW, _MORE * len(both)):
                    said.setdefault(row, []).append(f"{other} fools {missed} points that it leaves")
        return {row: "; ".join(each) for row, each in said.items()}

    @property
    def threat(self) -> str | None:
        """The threat models in words, or None without any."""
        of = [*self.threats.values(), *([self.certified_threat] if self.certified_threat else [])]
        return "; ".join(sorted({str(threat) for threat in of})) or None

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

    @property
    def curve(self) -> SecurityCurve | None:
        """Robust accuracy against eps, or None without an attack that looks for distances.

        Of each point the least that any attack in that norm moved it by to fool it.
        """
        if not self.distances:
            return None
        norm = self.threats[next(iter(self.distances))].norm
        each = [d for row, d in self.distances.items() if self.threats[row].norm == norm]
        return SecurityCurve(norm, tuple(min(found) for found in zip(*each, strict=False)))

    @property
    def proofs(self) -> str | None:
        """How many points have which verdict of the certifier, in words; None without one."""
        if self.verdicts is None:
            return None
        return ", ".join(f"{n} {words}" for words, n in counted(self.verdicts).items())

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
        if row == "certified" and self.certified is not None:
            return self.certified
        if row not in self.flags:
            more = ["worst case", *(["certified"] if self.certified is not None else [])]
            raise ValueError(f"row is {row!r}; legal: {[*self.rows, *more]}.")
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
        one, two = (report._threats_of(row) for report in (self, other))
        if one != two:
            shown = [", ".join(map(str, each)) or "no threat model" for each in (one, two)]
            raise ValueError(f"one report's {row} is of {shown[0]}, the other's of {shown[1]}.")
        return mcnemar(mine, theirs)

    def _threats_of(self, row: str) -> list[ThreatModel]:
        """The threat models that a row is of; the worst case is of all attacks'."""
        if row == "worst case":
            return sorted(set(self.threats.values()), key=repr)
        found = self.certified_threat if row == "certified" else self.threats.get(row)
        return [] if found is None else [found]

    def refuse_contradiction(self) -> None:
        """Raise if a point is certified and an attack within the certified ball fooled it.

        Raises:
            ValueError: naming the point and the attack; the certificate is wrong, or the network
                was not the same.
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

    def to_json(self) -> str:
        """Return everything as JSON; accuracies in RobustBench's per cent fields first."""
        robust = self.worst if len(self.flags) > 1 else None
        content: dict[str, Any] = {
            "clean_acc": 100 * self.accuracy(),
            "autoattack_acc": 100 * self.accuracy("AutoAttack")
            if "AutoAttack" in self.flags
            else None,
            "worst_case_acc": 100 * sum(robust) / len(robust) if robust else None,
            "certified_acc": None if self.certified is None else 100 * self.accuracy("certified"),
            "balanced_acc": {row: 100 * self.balanced(row) for row in self.flags},
            "threat": self.threat,
            "threats": {row: _plain(threat) for row, threat in self.threats.items()},
            "n": {row: len(flags) for row, flags in self.flags.items()},
            "findings": list(self.findings),
            "inputs": self.inputs,
            "labels": list(self.labels),
            "flags": {row: _bits(flags) for row, flags in self.flags.items()},
            "certified": None if self.certified is None else _bits(self.certified),
            "certified_threat": self.certified_threat and _plain(self.certified_threat),
            "certifier": self.certifier,
            "verdicts": None if self.verdicts is None else list(self.verdicts),
            # JSON has no infinity.
            "distances": {
                row: [d if math.isfinite(d) else None for d in each]
                for row, each in self.distances.items()
            },
            "remarks": self.remarks,
            "attacks": dict(self.attacks),
            "versions": dict(self.versions),
            "seed": self.seed,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: if it is something else.
        """
        content = json.loads(text)
        found = set(content) if isinstance(content, dict) else set()
        keys = {"labels", "flags", "threats", "findings", "inputs", "certified"}
        if missing := (keys | {"certified_threat", "distances"}) - found:
            raise ValueError(f"this is no report of this version; it lacks {sorted(missing)}.")
        n = len(content["labels"])
        if len(content["flags"].get("clean", "")) != n or any(
            len(bits) > n or set(bits) - {"0", "1"} for bits in content["flags"].values()
        ):
            raise ValueError(f"the report is damaged: its flags are not those of {n} points.")
        certified, ball = content["certified"], content["certified_threat"]
        return cls(
            tuple(content["labels"]),
            {row: _flags(bits) for row, bits in content["flags"].items()},
            {row: ThreatModel(**threat) for row, threat in content["threats"].items()},
            tuple(content["findings"]),
            content["inputs"],
            None if certified is None else _flags(certified),
            ball and ThreatModel(**ball),
            {
                row: tuple(math.inf if d is None else d for d in each)
                for row, each in content["distances"].items()
            },
            content.get("certifier"),
            None if content.get("verdicts") is None else tuple(content["verdicts"]),
            content.get("attacks", {}),
            content.get("versions", {}),
            content.get("seed"),
        )

    def robustbench(self, **about: str) -> dict[str, Any]:
        """Return the entry of a model in RobustBench's fields, and n, the number of points.

        Args:
            about: what no evaluation knows: name, authors, link, venue, dataset, architecture,
                additional_data...

        Raises:
            ValueError: without a row of AutoAttack itself on all points, or without bounds.
        """
        flags = self.flags.get("AutoAttack")
        if flags is None or len(flags) < self.n:
            raise ValueError(
                f"rows are {list(self.rows)}; RobustBench lists the standard AutoAttack on all "
                f"points, {self.n} here."
            )
        threat = self.threats["AutoAttack"]
        if not math.isfinite(threat.high - threat.low):
            raise ValueError(
                f"the threat model is {threat}; RobustBench lists radii of images scaled to [0, 1]."
            )
        return {
            **about,
            "threat_model": threat.norm,
            "eps": threat.in_unit_box.fraction,
            "n": self.n,
            "clean_acc": f"{100 * self.accuracy():.2f}",
            "autoattack_acc": f"{100 * self.accuracy('AutoAttack'):.2f}",
        }

    def __str__(self) -> str:
        """Return a table: accuracy in per cent, 95 % interval, n, balanced accuracy, remarks."""
        rows = {row: row for row in self.rows}
        if len(self.flags) > 2:
            some = len(self.worst) < self.n
            rows["worst case"] = (
                f"worst case of the first {len(self.worst)}" if some else "worst case"
            )
        if self.certified is not None:
            rows["certified"] = "certified"
        if ";" in (self.threat or ""):  # several: each row says whose it is
            for row in (*self.threats, "certified"):
                if row in rows:
                    rows[row] += f", {self._threats_of(row)[0]}"
        remarks = self.remarks
        width = max(len(shown) for shown in rows.values())
        lines = [f"threat model: {self.threat}"] if self.threat else []
        lines += [f"certified by {self.certifier}"] if self.certifier else []
        for row, shown in rows.items():
            low, high = self.interval(row)
            lines.append(
                f"{shown:<{width}}  {100 * self.accuracy(row):5.1f} "
                f"[{100 * low:.1f}, {100 * high:.1f}]  n={len(self._row(row))}  "
                f"balanced {100 * self.balanced(row):.1f}"
                + (f"  ({remarks[row]})" if row in remarks else "")
            )
        lines += [f"proofs: {self.proofs}"] if self.proofs else []
        return "\n".join([*lines, *(f"finding: {text}" for text in self.findings)])


def _plain(threat: ThreatModel) -> dict[str, Any]:
    # JSON has no infinity; ThreatModel reads "inf" and "-inf".
    bounds = {name: getattr(threat, name) for name in ("low", "high")}
    shown = {name: each if math.isfinite(each) else str(each) for name, each in bounds.items()}
    return {**asdict(threat), **shown}


def _bits(flags: tuple[bool, ...]) -> str:
    return "".join("01"[flag] for flag in flags)


def _flags(bits: str) -> tuple[bool, ...]:
    return tuple(bit == "1" for bit in bits)
