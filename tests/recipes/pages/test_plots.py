"""Plots to PNG files."""

from pathlib import Path

from pictures import check_picture

from robust_plugin.recipes.pages.plots import plot_kept

KEPT = {
    "LWM": {"a.weight": [1, 10], "b.weight": [5, 10]},
    "HARP": {"a.weight": [3, 10], "b.weight": [3, 10]},
}


def test_the_plot_of_kept_shares_is_a_picture_and_leaves_nothing_else(tmp_path: Path) -> None:
    plot_kept(KEPT, tmp_path / "plot.png")
    check_picture(tmp_path / "plot.png")


def test_a_layer_without_kept_weights_is_drawn_on_the_log_scale(tmp_path: Path) -> None:
    plot_kept({"x": {"a": [0, 10], "b": [10, 10]}}, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 0
