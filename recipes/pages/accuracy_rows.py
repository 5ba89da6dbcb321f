"""The accuracies of a report as rows of a table, and how to read each row in a sentence or two."""

from __future__ import annotations

from dataclasses import dataclass

from robust_plugin.evaluation.report import Report

# Head of the table whose rows are those of ``accuracy_rows``.
ACCURACY_HEAD = ("", "accuracy", "points", "balanced", "remark")


@dataclass(frozen=True)
class Shown:
    """An accuracy in per cent as a page shows it.

    Attributes:
        value: the accuracy.
        low: lower end of its 95 % interval.
        high: upper end of it.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """A difference of two accuracies in points of per cent, as a page shows it.

    Attributes:
        value: the difference.
        low: lower end of its 95 % interval.
        high: upper end of it.
        reach: the bar of the difference goes from -reach to reach.
    """

    value: float
    low: float
    high: float
    reach: float


def shown(report: Report, row: str) -> Shown:
    """Return an accuracy of a report, in per cent, with its interval.

    Args:
        report: the report.
        row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
    """
    low, high = report.interval(row)
    return Shown(100 * report.accuracy(row), 100 * low, 100 * high)


def rows_of(report: Report) -> list[str]:
    """Return the names of the accuracies that a page shows, in their order.

    They are ``"clean"``, the attacks, ``"worst case"`` if there are two attacks or more, and
    ``"certified"`` if points were proved.

    Args:
        report: the report.
    """
    rows = [*report.rows, *(["worst case"] if len(report.rows) > 2 else [])]
    return [*rows, *(["certified"] if report.certified is not None else [])]


def accuracy_rows(report: Report) -> list[list[Shown | str]]:
    """Return the rows of a table: name, accuracy, points, balanced accuracy, and a remark.

    If an attack or the proofs have fewer points, rows on these points alone follow, so that every
    figure has the others of the same points beside it.

    Args:
        report: the report.
    """
    found: list[list[Shown | str]] = []
    for n, rows in report.rows_by_n.items():
        part = report.first(n)
        where = "" if n == report.n else f", first {n:,} points"
        found += [
            [
                f"{title_of(part, row)}{where}",
                shown(part, row),
                f"{n:,}",
                f"{100 * part.balanced(row):.1f} %",
                part.remarks.get(row, ""),
            ]
            for row in rows
        ]
    return found


def readings(report: Report) -> list[tuple[str, str]]:
    """Return how to read each row of the table, as pairs of the row's name and sentences.

    Args:
        report: the report.
    """
    return [(title_of(report, row), meaning(report, row)) for row in rows_of(report)]


def title_of(report: Report, row: str) -> str:
    """Return the name of an accuracy, with its threat model if the report has more than one.

    Args:
        report: the report.
        row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
    """
    threats = {**report.threats, "certified": report.certified_threat}
    several = len({threat for threat in threats.values() if threat is not None}) > 1
    name = f"{row} accuracy" if row in ("clean", "certified") else row
    threat = threats.get(row)
    return name if threat is None or not several else f"{name}, {threat}"


def points_of(report: Report, row: str) -> int:
    """Return the number of points of an accuracy.

    Args:
        report: the report.
        row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
    """
    n = {"worst case": len(report.worst), "certified": len(report.certified or ())}
    return n[row] if row in n else len(report.flags[row])


def meaning(report: Report, row: str) -> str:
    """Return one or two sentences on what an accuracy is.

    Args:
        report: the report that has this row.
        row: ``"clean"``, the name of an attack, ``"worst case"`` or ``"certified"``.
    """
    n = points_of(report, row)
    points = f"{n:,} test points" if n == report.n else f"the first {n:,} test points"
    if row == "clean":
        return (
            f"Share of {points} that are classified correctly without an attack. The bar is the "
            "95 % interval: what the accuracy on all possible points may be."
        )
    if row == "worst case":
        return (
            f"Share of {points} that are classified correctly without an attack and under every "
            "attack of this table."
        )
    if row == "certified":
        return (
            f"Share of {points} for which {report.certifier} proves that no input within "
            f"{report.certified_threat} is misclassified. No attack can do better than this."
        )
    ball = f" within {report.threats[row]}" if row in report.threats else ""
    return (
        f"Share of {points} for which the attack {row} finds no misclassified input{ball}. A "
        "stronger attack may find more, so the true share may be lower."
    )
