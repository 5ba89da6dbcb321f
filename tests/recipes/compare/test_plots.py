"""The plots of a comparison."""

from pathlib import Path

import pytest
from pictures import check_picture
from sample_pages import comparison_cells

from robust_plugin.recipes.compare.plots import (
    draw_curves,
    draw_densities,
    plot_curves,
    plot_densities,
)
from robust_plugin.recipes.pages.colors import color_of
from robust_plugin.recipes.pages.svg import drawing

CURVES = {"5 % kept": {"LWM": [0.2, 0.6], "HARP": [0.5, 0.7]}, "1 % kept": {"LWM": [0.1, 0.3]}}


def test_the_plot_of_curves_is_a_picture_and_leaves_nothing_else(tmp_path: Path) -> None:
    plot_curves(CURVES, tmp_path / "plot.png")
    check_picture(tmp_path / "plot.png")


def test_the_plot_of_densities_is_a_picture_and_leaves_nothing_else(tmp_path: Path) -> None:
    plot_densities(comparison_cells(), tmp_path / "plot.png")
    check_picture(tmp_path / "plot.png")


def test_curves_are_in_per_cent_in_the_colour_of_their_method() -> None:
    _, axes = drawing()
    draw_curves(axes, CURVES["5 % kept"])
    for line, (name, values) in zip(axes.lines, CURVES["5 % kept"].items(), strict=True):
        assert list(line.get_xdata()) == [1, 2] and line.get_color() == color_of(name)
        assert list(line.get_ydata()) == pytest.approx([100 * value for value in values])


@pytest.mark.parametrize("seeds", [1, 3])
def test_accuracies_stand_at_their_density_with_their_interval(seeds: int) -> None:
    cells = comparison_cells(seeds)
    _, axes = drawing()
    draw_densities(axes, cells, "PGD-10")
    low, high = axes.get_xlim()
    assert high / low >= 10 and axes.get_xscale() == "log"
    rows = list(dict.fromkeys(cell.row for cell in cells))
    assert axes.get_legend_handles_labels()[1] == rows
    dense = axes.lines[0]
    assert dense.get_ydata()[0] == pytest.approx(100 * cells[0].interval("PGD-10")[0])
    assert dense.get_color() == color_of("dense")
    for bars, row in zip(axes.containers, rows[1:], strict=True):
        points, _, (ends,) = bars.lines
        own = [cell for cell in cells if cell.row == row]
        assert points.get_color() == color_of(row)
        assert list(points.get_xdata()) == pytest.approx(
            [100 * cell.density for cell in own], rel=0.07
        )
        for cell, value, segment in zip(own, points.get_ydata(), ends.get_segments(), strict=True):
            expected = [100 * each for each in cell.interval("PGD-10")]
            assert [value, *segment[:, 1]] == pytest.approx(expected)
