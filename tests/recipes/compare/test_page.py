"""The HTML page of a comparison."""

import re

import pytest
from comparison_cells import report
from sample_pages import ROWS, comparison_cells, comparison_html

from robust_plugin.recipes.compare.cells import Cell
from robust_plugin.recipes.compare.differences import difference, differences
from robust_plugin.recipes.compare.page import best_cells, comparison_page, main_measure, reading
from robust_plugin.recipes.pages.colors import color_of


def rows_of(html: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, as text."""
    table = re.search(r"<table>.*?</table>", html.partition(f"<h2>{heading}</h2>")[2], re.S)
    assert table is not None
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table[0], re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
    return [[" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_of_a_comparison_needs_nothing_beside_it(seeds: int) -> None:
    html = comparison_html(seeds)
    assert not re.search(r"(src|href)=\"(?!data:|#)", html) and "<script" not in html
    # densities, security curves, layers, curves, confusion
    assert html.count("<svg") == 2 + 1 + 2 + 2 + 2
    assert f"{seeds} seed" in html and "test points: clean 60, PGD-10 60" in html
    assert ("95 % t interval" in html) == (seeds > 1) and ("Wilson" in html) == (seeds == 1)
    assert "robust-plugin compare --out runs/mine" in html and "torch 2.9" in html
    assert "cat &lt;1&gt;" in html and "<1>" not in html
    assert "<summary>All settings of this comparison</summary>" in html


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_table_has_a_row_for_each_cell_with_intervals(seeds: int) -> None:
    cells = comparison_cells(seeds)
    head, *rows = rows_of(comparison_html(seeds), "Accuracy")
    assert head == ["method", "kept", "clean", "PGD-10", "validation", "learning rate"]
    for cell, row in zip(cells, rows, strict=True):
        assert row[:2] == [cell.row, f"{100 * cell.density:g} %"]
        for text, measure in zip(row[2:4], cell.rows, strict=True):
            mean, low, high = (100 * value for value in cell.interval(measure))
            low, high = max(0.0, low), min(100.0, high)
            assert text == f"{mean:.1f} % {low:.1f} to {high:.1f}"
    assert rows[0][4:] == ["", ""] and rows[2][4:] == ["30.0 %", "0.1"]


def test_the_best_row_at_each_density_is_marked_and_rows_have_their_colour() -> None:
    cells, html = comparison_cells(), comparison_html()
    marked = re.findall(r'<tr class="best"><td><span class="chip"><i[^>]*></i>(.*?)</span>', html)
    assert marked == [ROWS[-1]] * 2 == [cell.row for cell in best_cells(cells)]
    for row in ROWS:
        assert f'<i style="background: {color_of(row)}"></i>{row}</span>' in html


def test_paired_differences_say_who_is_better_with_interval_and_p() -> None:
    cells = comparison_cells()
    head, *rows = rows_of(comparison_html(), "Paired differences")
    found = [each for density in (0.05, 0.01) for each in differences(cells, density)]
    assert len(rows) == len(found) > 0 and head[-2:] == ["verdict", "p"]
    for each, row in zip(found, rows, strict=True):
        mean, low, high = (f"{100 * end:+.1f}" for end in (each.mean, each.low, each.high))
        assert row[0] == f"{each.first} minus {each.second}" and row[2] == each.measure
        assert row[3] == f"{mean} {low} to {high}" and row[4] == each.verdict


def test_each_row_is_read_in_one_sentence() -> None:
    cells = comparison_cells()
    dense, pruned = cells[0], cells[2]
    assert reading(cells, dense).startswith("The network before pruning: 83.3 % of the test points")
    said = reading(cells, pruned)
    against = difference(pruned, dense, "PGD-10")
    where = f"{-100 * against.mean:.1f} points below the dense network"
    assert said.startswith("With 5 % kept, 83.3 % of the test points are right") and where in said
    assert said.count(". ") == 0 and said.endswith(").")
    assert "in the mean of 3 seeds" in reading(comparison_cells(3), comparison_cells(3)[1])


def test_learning_rates_that_diverged_are_named_and_proofs_rank_the_rows() -> None:
    cells = [
        Cell("dense", 1.0, None, [report(14, 12)], None),
        Cell("HYDRA", 0.05, 0.1, [report(12, 9)], 0.5, (1e9,)),
    ]
    page = comparison_page(
        cells, title="", data="", threat="", settings={}, kept={}, curves={}, versions={}
    )
    assert "0.1 (1e+09 diverged)" in page and "Confusion" not in page and "Examples" not in page
    assert main_measure(cells) == "PGD"
