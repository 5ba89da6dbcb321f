"""Tables of text with aligned columns, the same tables in HTML for notebooks, and short lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


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


def html_table(rows: Sequence[Sequence[str]], *, align: str) -> str:
    """Return an HTML table, as notebooks show it for the last value of a cell.

    It sets no colours, so that it is readable on light and on dark backgrounds.

    Args:
        rows: plain text of the cells, row by row, the header first; a short row leaves its last
            columns empty.
        align: one character per column, ``<`` for left and ``>`` for right.

    Raises:
        ValueError: if a row has more cells than ``align`` has characters.
    """
    if (longest := max(map(len, rows), default=0)) > len(align):
        raise ValueError(f"a row has {longest} cells; legal: at most {len(align)}, as in align.")
    sides = ["left" if side == "<" else "right" for side in align]
    lines = ["<table>"]
    for number, row in enumerate(rows):
        kind = "td" if number else "th"
        full = [*row, *[""] * (len(align) - len(row))]
        cells = "".join(
            f'<{kind} style="text-align: {side}; padding: 0 0.6em">{escape(cell)}</{kind}>'
            for side, cell in zip(sides, full, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def html_lines(texts: Iterable[str]) -> str:
    """Return lines of plain text in HTML, to stand above or below a table."""
    return "\n".join(f"<div>{escape(text)}</div>" for text in texts)


def listed(texts: Iterable[str], *, width: int = 240) -> str:
    """Return texts with commas between them, and how many more there are where they are too long.

    Args:
        texts: the texts.
        width: the largest number of characters, about.

    >>> listed(["conv1", "conv2", "fc"], width=12)
    'conv1, conv2 and 1 more'
    """
    given = [text if len(text) <= width else f"{text[: width - 3]}..." for text in texts]
    shown, length = 0, 0
    while shown < len(given) and (length + len(given[shown]) <= width or not shown):
        length += len(given[shown]) + 2
        shown += 1
    left = len(given) - shown
    return ", ".join(given[:shown]) + (f" and {left} more" if left else "")
