"""The text table of a comparison, with intervals and numbers of points."""

from __future__ import annotations

from collections.abc import Sequence

from robust_plugin.recipes.compare.cells import Cell, conditions, pruned_densities, tables_of
from robust_plugin.recipes.compare.differences import differences, reference


def comparison_table(cells: Sequence[Cell], *, data: str, threat: str) -> str:
    """Return a comparison as text: conditions, a Markdown table, and the paired differences.

    The table has one line per method and density, and one column per kind of accuracy. If an attack
    or the proofs have fewer points, there is a table for each number of points. With one seed, each
    accuracy has its Wilson 95 % interval over the test points. With several seeds, it is the mean
    over seeds with the half-width of its 95 % t interval.

    Args:
        cells: results of the dense network and of all methods at all densities.
        data: name of the data set.
        threat: the threat model as text.
    """
    rows = cells[0].rows
    lines = [conditions(cells, data=data, threat=threat)]
    tables = tables_of(cells)
    for title, (of_points, columns) in tables.items():
        lines += ["", *([f"On {title}:", ""] if len(tables) > 1 else [])]
        lines += _markdown(of_points, columns)
    lost = [cell for cell in cells if cell.diverged]
    if lost:
        lines += ["", "Learning rates at which a training diverged, and which were not chosen:"]
        lines += [
            f"- {cell.row}, {100 * cell.density:g} % kept: "
            + ", ".join(f"{lr:g}" for lr in cell.diverged)
            for cell in lost
        ]
    for density in pruned_densities(cells):
        lines += _gain(cells, density, rows)
    return "\n".join(lines)


def _markdown(cells: Sequence[Cell], rows: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table, one per cell, with a column per kind of accuracy."""
    lines = [
        f"| kept | method | lr | {' | '.join(rows)} |",
        f"|---|---|---|{'---|' * len(rows)}",
    ]
    for cell in cells:
        lr = "" if cell.lr is None else f"{cell.lr:g}"
        shown = " | ".join(cell.shown(row) for row in rows)
        lines.append(f"| {100 * cell.density:g} % | {cell.row} | {lr} | {shown} |")
    return lines


def _gain(cells: Sequence[Cell], density: float, rows: Sequence[str]) -> list[str]:
    """Return the lines with the paired differences at a density; empty if there are none.

    They compare certified accuracy if points were proved, and accuracy under the first attack if
    not.

    Args:
        cells: results of the dense network and of all methods at all densities.
        density: density at which methods are compared.
        rows: kinds of accuracy: "clean", the attacks and, with proofs, "certified".
    """
    measure = "certified" if "certified" in rows else rows[min(1, len(rows) - 1)]
    against = reference(cells, density)
    found = [each for each in differences(cells, density) if each.measure == measure]
    if against is None or not found:
        return []
    chosen = "the magnitude row that validation chose" if against.lr else "which is not pruned"
    pairs = [each for each in found if each.second != against.row]
    return [
        "",
        f"{100 * density:g} % kept, {measure}, minus that of {against.row}, {chosen} (p: McNemar's "
        "exact test, one for each seed):",
        *(f"- {each.first}: {each}" for each in found if each.second == against.row),
        *(f"- {each.first} minus {each.second}: {each}" for each in pairs),
    ]


def interval_of(cells: Sequence[Cell]) -> str:
    """Return a description of the intervals in a comparison, such as "95 % t interval, 3 seeds"."""
    seeds = len(cells[0].reports)
    return f"95 % t interval, {seeds} seeds" if seeds > 1 else "Wilson 95 % of one seed's points"
