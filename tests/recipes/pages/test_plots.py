"""Plots that several commands share, and the ranges of their axes."""

from pathlib import Path

import pytest
from pictures import check_picture

from robust_plugin.recipes.pages.colors import color_of
from robust_plugin.recipes.pages.plots import (
    decades,
    draw_kept,
    legend,
    percent_range,
    plot_kept,
    plot_panels,
)
from robust_plugin.recipes.pages.svg import drawing

KEPT = {
    "LWM": {"a.weight": [1, 10], "b.weight": [5, 10]},
    "HARP": {"a.weight": [3, 10], "b.weight": [3, 10]},
}


def test_the_plot_of_kept_shares_is_a_picture_and_leaves_nothing_else(tmp_path: Path) -> None:
    plot_kept(KEPT, tmp_path / "plot.png")
    check_picture(tmp_path / "plot.png")


def test_panels_are_one_picture(tmp_path: Path) -> None:
    plot_panels(
        {"one": lambda axes: draw_kept(axes, KEPT), "two": lambda axes: None}, tmp_path / "a"
    )
    check_picture(tmp_path / "a")


def test_shares_that_differ_by_rounding_lie_on_one_level() -> None:
    _, axes = drawing()
    draw_kept(axes, {"LWM uniform": {"a": (50, 1000), "b": (52, 1000), "c": (51, 1000)}})
    (line,) = axes.lines
    assert list(line.get_ydata()) == pytest.approx([5.0, 5.2, 5.1])
    assert axes.get_yscale() == "log" and axes.get_ylim() == (1.0, 10.0)
    assert line.get_color() == color_of("LWM")
    heights = axes.transAxes.inverted().transform(axes.transData.transform(line.get_xydata()))[:, 1]
    assert max(heights) - min(heights) < 0.02  # of the height of the plot


def test_a_layer_without_kept_weights_is_drawn_on_the_log_scale(tmp_path: Path) -> None:
    plot_kept({"x": {"a": [0, 10], "b": [10, 10]}}, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([5.0, 5.2], (1, 10)),
        ([100.0], (10, 100)),
        ([0.5, 100.0], (0.1, 100)),
        ([1.0, 10.0], (1, 10)),
        ([0.0], (0.1, 1)),
        ([], (0.1, 1)),
    ],
)
def test_a_logarithmic_axis_ends_at_powers_of_ten_and_spans_one(
    values: list[float], ends: tuple[float, float]
) -> None:
    assert decades(values) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([91.2, 91.9], (80, 100)),
        ([42.0, 43.0], (30, 50)),
        ([0.0, 0.1], (0, 20)),
        ([3.0, 97.0], (0, 100)),
        ([100.0], (80, 100)),
        ([], (0, 100)),
    ],
)
def test_an_axis_of_accuracies_spans_twenty_per_cent(
    values: list[float], ends: tuple[float, float]
) -> None:
    low, high = percent_range(values)
    assert (low, high) == pytest.approx(ends) and high - low >= 20


def test_the_legend_stands_below_the_plot_and_long_names_get_a_line_each() -> None:
    for names, columns in ((["a", "b"], 2), (["a", "b" * 40], 1), (["a"], 1)):
        figure, axes = drawing()
        for name in names:
            axes.plot([0, 1], label=name)
        legend(figure, axes)
        (found,) = figure.legends
        assert [text.get_text() for text in found.get_texts()] == names
        assert found._ncols == columns


def test_the_plot_keeps_its_height_when_names_are_added() -> None:
    heights = []
    for count in (0, 12):
        figure, axes = drawing(4.8, 2.0)
        for number in range(count):
            axes.plot([0, 1], label=f"{'a long name of a method ' * 2}{number}")
        legend(figure, axes)
        figure.draw_without_rendering()
        heights.append(axes.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.1)
