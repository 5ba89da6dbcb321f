"""Text tables: every column as wide as its longest cell, on the side that was asked for."""

import pytest

from robust_plugin.runtime.tables import table


def test_columns_are_aligned_on_their_side():
    lines = table([["name", "kept", "why"], ["a", "1,000", "-"], ["long name", "7"]], align="<><")
    assert lines == [
        "name        kept  why",
        "a          1,000  -",
        "long name      7",
    ]


def test_every_cell_ends_or_begins_where_its_column_does():
    rows = [[str(10**i) for i in range(j, j + 4)] for j in range(5)]
    left, right = table(rows, align="<<<<"), table(rows, align=">>>>")
    for column in range(4):
        begins = (
            {line.index(row[column] + "  ") for line, row in zip(left, rows, strict=True)}
            if column < 3
            else {0}
        )
        assert len(begins) == 1
    assert len({len(line) for line in right}) == 1


def test_no_rows_and_too_many_cells():
    assert table([], align="<>") == []
    with pytest.raises(ValueError, match="a row has 3 cells; legal: at most 2"):
        table([["a", "b", "c"]], align="<>")
