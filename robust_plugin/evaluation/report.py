"""``Report``: the results of an evaluation as a table, as JSON and as a RobustBench entry."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from robust_plugin.evaluation.results import Results
from robust_plugin.threat.model import ThreatModel


@dataclass(frozen=True)
class Report(Results):
    """The results of an evaluation, with methods to print, save and read them.

    The attributes and the methods that compute accuracies are those of ``Results``.
    """

    def to_json(self) -> str:
        """Return the report as JSON text: accuracies in per cent, then all attributes.

        Fields that RobustBench has too have its names, such as ``clean_acc``.
        """
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
        """Return the report of a JSON text.

        Args:
            text: what ``to_json`` returned.

        Raises:
            ValueError: for other text, or a damaged report.
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
        """Return the fields of the model's entry in RobustBench, and n, the number of points.

        Args:
            about: fields that an evaluation does not know: name, authors, link, venue, dataset,
                architecture, additional_data and so on. They are added to the result.

        Raises:
            ValueError: if no attack with the name ``"AutoAttack"`` ran on all points, or if its
                threat model has no finite bounds [low, high].
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
        """Return a table with one line each for clean inputs, attacks, worst case and proofs.

        A line has the accuracy in per cent, its 95 % interval, the number of points, the balanced
        accuracy in per cent, and remarks. Below the table are sentences about defects of the model,
        if any were found.
        """
        rows = {row: row for row in self.rows}
        if len(self.flags) > 2:
            some = len(self.worst) < self.n
            rows["worst case"] = (
                f"worst case of the first {len(self.worst)}" if some else "worst case"
            )
        if self.certified is not None:
            rows["certified"] = "certified"
        if ";" in (self.threat or ""):  # several threat models: each row names its own
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
    """Return a threat model as a dict for JSON, which has no infinity.

    Infinite bounds become "inf" and "-inf", which ThreatModel takes too.
    """
    bounds = {name: getattr(threat, name) for name in ("low", "high")}
    shown = {name: each if math.isfinite(each) else str(each) for name, each in bounds.items()}
    return {**asdict(threat), **shown}


def _bits(flags: tuple[bool, ...]) -> str:
    """Return the flags of all points as a string with one 0 or 1 per point."""
    return "".join("01"[flag] for flag in flags)


def _flags(bits: str) -> tuple[bool, ...]:
    """Return the flags of a string with one 0 or 1 per point."""
    return tuple(bit == "1" for bit in bits)
