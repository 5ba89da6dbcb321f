"""The HTML page of a comparison."""

import re
from pathlib import Path

import pytest
from comparison_cells import report
from PIL import Image

from robust_plugin.recipes.compare.cells import Cell
from robust_plugin.recipes.compare.differences import differences
from robust_plugin.recipes.compare.page import comparison_page
from robust_plugin.recipes.compare.tables import plot_curves, plot_densities
from robust_plugin.recipes.pages.plots import plot_kept


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_of_a_comparison_needs_nothing_beside_it(tmp_path: Path, seeds: int) -> None:
    cells = [
        Cell(row, density, lr, [report(18, right + seed) for seed in range(seeds)], validation)
        for row, density, lr, right, validation in (
            ("dense", 1.0, None, 14, None),
            ("LWM <uniform>", 0.05, 0.1, 9, 0.4),
            ("HYDRA", 0.05, 0.1, 12, 0.5),
            ("LWM <uniform>", 0.01, 0.1, 3, 0.2),
            ("HYDRA", 0.01, 0.1, 7, 0.3),
        )
    ]
    plots = {name: tmp_path / f"{name}.png" for name in ("densities", "kept", "curves")}
    plot_densities(cells, plots["densities"])
    plot_kept({"HYDRA": {"a": [1, 4], "b": [2, 4]}}, plots["kept"])
    plot_curves({"5 % kept": {"HYDRA": [0.1, 0.2]}}, plots["curves"])
    html = comparison_page(
        cells,
        title="mine",
        data="digits",
        threat="Linf eps=0.1",
        settings={"densities": [0.05, 0.01]},
        plots=plots,
    )
    assert html.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", html) and "<script" not in html
    assert "LWM &lt;uniform&gt;" in html and "<uniform>" not in html
    assert f"{seeds} seed" in html and "test points: clean 20, PGD 20" in html
    assert ("95 % t interval" in html) == (seeds > 1) and ("Wilson" in html) == (seeds == 1)
    for each in cells:
        assert all(f"<td>{each.shown(row)}</td>" in html for row in each.rows)
    for density in (0.05, 0.01):
        for each in differences(cells, density):
            assert f"<td>{100 * each.mean:+.1f}</td>" in html
    for plot in plots.values():
        with Image.open(plot) as image:
            assert min(image.size) > 200
