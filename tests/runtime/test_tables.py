"""Text tables: every column as wide as its longest cell, on the side that was asked for."""

from xml.etree import ElementTree

import pytest

from robust_plugin.runtime.tables import html_lines, html_table, listed, table


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


def test_html_has_the_cells_and_escapes_them():
    text = html_table([["layer", "kept"], ["<b>", "7"], ["short"]], align="<>")
    root = ElementTree.fromstring(text)
    cells = [[cell.text or "" for cell in row] for row in root.iter("tr")]
    assert cells == [["layer", "kept"], ["<b>", "7"], ["short", ""]]
    assert [cell.tag for row in root.iter("tr") for cell in row] == ["th"] * 2 + ["td"] * 4
    sides = [cell.get("style").split(";")[0] for cell in root.iter("th")]
    assert sides == ["text-align: left", "text-align: right"]
    assert "color" not in text  # the notebook's own colours, light or dark
    assert html_lines(["a < b", "c"]) == "<div>a &lt; b</div>\n<div>c</div>"
    with pytest.raises(ValueError, match="a row has 3 cells; legal: at most 2"):
        html_table([["a", "b", "c"]], align="<>")


def test_long_lists_say_how_many_more_there_are():
    assert listed([]) == "" and listed(["a", "b"]) == "a, b"
    names = [f"layer{i}" for i in range(100)]
    text = listed(names, width=29)
    assert text == "layer0, layer1, layer2 and 97 more"
    assert len(listed(["x" * 1000, "y"], width=30)) <= 42
