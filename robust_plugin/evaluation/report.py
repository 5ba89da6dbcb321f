"""``Report``: the results of an evaluation as a table, as JSON and as a RobustBench entry."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from robust_plugin.evaluation.results import Results
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.plots import bars
from robust_plugin.runtime.tables import html_lines, html_table
from robust_plugin.threat.model import ThreatModel


@explain_wrong_calls
@dataclass(frozen=True, repr=False)
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
            # Figures of one entry are of the same points, the first n.
            "acc_by_n": {
                n: {row: 100 * self.first(n).accuracy(row) for row in rows}
                for n, rows in self.rows_by_n.items()
            },
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
            TypeError: if it is no text.
            ValueError: for other text, or a damaged report.
        """
        if not isinstance(text, str):
            raise TypeError(
                f"text is a {type(text).__name__}; give the text of the file, as "
                'Path("report.json").read_text().'
            )
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"text is {text[:40]!r}, no JSON ({error}); give the text of the file, as "
                'Path("report.json").read_text().'
            ) from error
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

    @property
    def rows_by_n(self) -> dict[int, tuple[str, ...]]:
        """The rows that can be compared, by the number of points that they share.

        A key is a number of points that some row has, the largest first; its rows are all that
        have at least as many, so that their accuracies on the first points are of the same points
        (see ``first``). ``"worst case"`` is among them if there are two attacks or more.
        """
        sizes = {row: len(flags) for row, flags in self.flags.items()}
        sizes |= {"worst case": len(self.worst)} if len(self.flags) > 2 else {}
        sizes |= {} if self.certified is None else {"certified": len(self.certified)}
        counts = sorted(set(sizes.values()), reverse=True)
        return {n: tuple(row for row, size in sizes.items() if size >= n) for n in counts}

    def first(self, n: int) -> Report:
        """Return the report of the first points alone.

        Args:
            n: number of points.

        Raises:
            ValueError: if there are fewer points.
        """
        if not 1 <= n <= self.n:
            raise ValueError(f"n is {n}; legal: 1 to {self.n}.")
        return replace(
            self,
            labels=self.labels[:n],
            flags={row: flags[:n] for row, flags in self.flags.items()},
            inputs=self.inputs if n == self.n else f"{self.inputs}, the first {n}",
            certified=None if self.certified is None else self.certified[:n],
            distances={row: each[:n] for row, each in self.distances.items()},
            verdicts=None if self.verdicts is None else self.verdicts[:n],
        )

    def __str__(self) -> str:
        """Return a table with one line each for clean inputs, attacks, worst case and proofs.

        A line has the accuracy in per cent, its 95 % interval, the number of points, the balanced
        accuracy in per cent, and remarks. If some rows have fewer points than others, there is a
        table for each number of points: figures in one table are always of the same points. Below
        are sentences about defects of the model, if any were found.
        """
        lines = [f"threat model: {self.threat}"] if self.threat else []
        lines += [f"certified by {self.certifier}"] if self.certifier else []
        tables = self.rows_by_n
        width = max(len(self._shown(row)) for rows in tables.values() for row in rows)
        for n, rows in tables.items():
            if len(tables) > 1:
                lines.append(f"all {n} points:" if n == self.n else f"the first {n} points:")
            report = self.first(n)
            lines += [report._line(row, width) for row in rows]
        lines += [f"proofs: {self.proofs}"] if self.proofs else []
        return "\n".join([*lines, *(f"finding: {text}" for text in self.findings)])

    def _repr_html_(self) -> str:
        """Return the tables of ``str`` in HTML, which notebooks show for a report."""
        head = ["", "accuracy, %", "95 % interval", "n", "balanced, %", "remark"]
        above = [f"threat model: {self.threat}"] if self.threat else []
        above += [f"certified by {self.certifier}"] if self.certifier else []
        below = [f"proofs: {self.proofs}"] if self.proofs else []
        below += [f"finding: {text}" for text in self.findings]
        tables = []
        for n, rows in self.rows_by_n.items():
            report = self.first(n)
            remarks = report.remarks
            cells = [[*report._cells(row), remarks.get(row, "")] for row in rows]
            some = f"all {n} points" if n == self.n else f"the first {n} points"
            tables.append(html_lines([some]) if len(self.rows_by_n) > 1 else "")
            tables.append(html_table([head, *cells], align="<>>>><"))
        return "\n".join([html_lines(above), *tables, html_lines(below)])

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the accuracy of each row in per cent, with its 95 % interval, as bars.

        All bars are of the same points: if a row has fewer points than others, of its first points.

        Args:
            ax: matplotlib axes to draw on; None for a new figure.

        Returns:
            tuple: matplotlib's figure and axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        n, rows = list(self.rows_by_n.items())[-1]
        report = self.first(n)
        some = f"the first {n}" if n < self.n else str(n)
        return bars(
            {self._shown(row): 100 * report.accuracy(row) for row in rows},
            {self._shown(row): _percent(report.interval(row)) for row in rows},
            ax,
            label=f"accuracy, % of {some} points",
            limit=100,
        )

    def _cells(self, row: str) -> list[str]:
        """Return the cells of a row of the HTML table, without the remark."""
        low, high = _percent(self.interval(row))
        return [
            self._shown(row),
            f"{100 * self.accuracy(row):.1f}",
            f"{low:.1f} to {high:.1f}",
            str(len(self._row(row))),
            f"{100 * self.balanced(row):.1f}",
        ]

    def _shown(self, row: str) -> str:
        """Return the name of a row, with its threat model if the report has several."""
        several = ";" in (self.threat or "") and row not in ("clean", "worst case")
        return f"{row}, {self._threats_of(row)[0]}" if several else row

    def _line(self, row: str, width: int) -> str:
        """Return the line of a row in the table, its name padded to ``width`` characters."""
        low, high = self.interval(row)
        remark = self.remarks.get(row)
        return (
            f"{self._shown(row):<{width}}  {100 * self.accuracy(row):5.1f} "
            f"[{100 * low:.1f}, {100 * high:.1f}]  n={len(self._row(row))}  "
            f"balanced {100 * self.balanced(row):.1f}" + (f"  ({remark})" if remark else "")
        )


def _plain(threat: ThreatModel) -> dict[str, Any]:
    """Return a threat model as a dict for JSON, which has no infinity.

    Infinite bounds become "inf" and "-inf", which ThreatModel takes too.
    """
    bounds = {name: getattr(threat, name) for name in ("low", "high")}
    shown = {name: each if math.isfinite(each) else str(each) for name, each in bounds.items()}
    return {**asdict(threat), **shown}


def _percent(interval: tuple[float, float]) -> tuple[float, float]:
    """Return both ends of an interval in per cent."""
    return 100 * interval[0], 100 * interval[1]


def _bits(flags: tuple[bool, ...]) -> str:
    """Return the flags of all points as a string with one 0 or 1 per point."""
    return "".join("01"[flag] for flag in flags)


def _flags(bits: str) -> tuple[bool, ...]:
    """Return the flags of a string with one 0 or 1 per point."""
    return tuple(bit == "1" for bit in bits)
