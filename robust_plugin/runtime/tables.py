"""Text tables with aligned columns, for everything that is printed."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, align: str) -> list[str]:
    r"""Return the lines of a text table, one per row of cells.

    Each column is as wide as its longest cell, and two spaces separate columns.

    Args:
        rows: the text of the cells, row by row, the header first if there is one; a short row
            leaves its last columns empty.
        align: one character per column, ``<`` for left and ``>`` for right.

    Raises:
        ValueError: if a row has more cells than ``align`` has characters.

    >>> print(*table([["layer", "kept"], ["conv1", "7"]], align="<>"), sep="\n")
    layer  kept
    conv1     7
    """
    longest = max(map(len, rows), default=0)
    if longest > len(align):
        raise ValueError(f"a row has {longest} cells; legal: at most {len(align)}, as in align.")
    full = [[*row, *[""] * (len(align) - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in full
    ]
