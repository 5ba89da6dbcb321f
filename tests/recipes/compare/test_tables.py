import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from robust_plugin import Report, ThreatModel, mcnemar, wilson_interval
from robust_plugin.recipes.compare.cells import Cell, mean_interval
from robust_plugin.recipes.compare.differences import differences, paired_bootstrap
from robust_plugin.recipes.compare.page import comparison_page
from robust_plugin.recipes.compare.tables import comparison_table, plot_curves, plot_densities
from robust_plugin.recipes.evaluate.page import page
from robust_plugin.recipes.pages.plots import plot_kept


def report(clean: int, robust: int, n: int = 20, first: int = 0) -> Report:
    """The first so many points right, beginning with ``first``."""

    def flags(right: int) -> tuple[bool, ...]:
        return tuple(first <= i < first + right for i in range(n))

    return Report(
        (0,) * n, {"clean": flags(clean), "PGD": flags(robust)}, {"PGD": ThreatModel("Linf", 0.1)}
    )


def cell(row: str, robust: int, validation: float | None, first: int = 0) -> Cell:
    lr = None if validation is None else 0.1
    return Cell(row, 0.05, lr, [report(18, robust, first=first)], validation)


def test_the_interval_over_seeds_is_students() -> None:
    # Student's t at 97.5 %: 12.706, 4.303, 2.776 at 1, 2 and 4 degrees of freedom.
    mean, half = mean_interval([0.4, 0.6])
    assert mean == pytest.approx(0.5) and half == pytest.approx(12.706 * 0.1, rel=1e-4)
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2) and half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    _, half = mean_interval([1.0, 1.0, 1.0, 1.0, 2.0])
    assert half == pytest.approx(2.7764 * math.sqrt(0.2 / 5), rel=1e-4)


def test_one_seed_has_no_interval_over_seeds() -> None:
    mean, half = mean_interval([0.4])
    assert mean == 0.4 and math.isnan(half)


def test_every_cell_of_the_table_has_its_interval_and_the_table_its_n() -> None:
    text = comparison_table(
        [cell("dense", 15, None), cell("LWM", 9, 0.4), cell("HYDRA", 12, 0.5)],
        data="digits",
        threat="Linf eps=0.1",
    )
    lines = text.splitlines()
    assert lines[0] == "digits, Linf eps=0.1, 1 seed; test points: clean 20, PGD 20"
    low, high = (100 * end for end in wilson_interval(9, 20))
    assert f"| 5 % | LWM | 0.1 | 90.0 [69.9, 97.2] | 45.0 [{low:.1f}, {high:.1f}] |" in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    for line in lines[4:7]:
        assert len(re.findall(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", line)) == 2


def test_the_attack_that_saw_fewer_points_says_so() -> None:
    few = Report((0,) * 20, {"clean": (True,) * 20, "AutoAttack": (True,) * 8})
    text = comparison_table([Cell("dense", 1.0, None, [few], None)], data="d", threat="t")
    assert "clean 20, AutoAttack 8" in text
    low, _ = wilson_interval(8, 8)
    assert f"100.0 [{100 * low:.1f}, 100.0]" in text


def test_several_seeds_show_mean_and_half_width() -> None:
    reports = [report(18, robust) for robust in (10, 12, 14)]
    text = comparison_table([Cell("LWM", 0.01, 0.03, reports, 0.5)], data="d", threat="t")
    assert "3 seeds" in text
    half = 4.3027 * 10 / math.sqrt(3)
    assert f"| 1 % | LWM | 0.03 | 90.0 ± 0.0 | 60.0 ± {half:.1f} |" in text


def test_every_learned_row_is_measured_against_the_magnitude_row_that_validation_chose() -> None:
    # On the test points LWM ERK is the better baseline, which must not matter.
    cells = [
        cell("dense", 20, None),
        cell("LWM uniform", 6, 0.40),
        cell("LWM ERK", 14, 0.30),
        cell("HYDRA", 11, 0.60, first=5),
        cell("HARP", 4, 0.50),
    ]
    lines = comparison_table(cells, data="d", threat="t").splitlines()[-3:]
    assert lines[0].startswith("5 % kept, PGD, points above LWM uniform, ")
    baseline = cells[1].reports[0].flags["PGD"]
    p = [mcnemar(cells[i].reports[0].flags["PGD"], baseline) for i in (3, 4)]
    assert re.fullmatch(rf"- HYDRA: \+25.0 \[.*\] \({p[0]:.2g}\)", lines[1])
    assert re.fullmatch(rf"- HARP: -10.0 \[.*\] \({p[1]:.2g}\)", lines[2])


def test_what_is_proved_is_a_column_and_what_rows_are_measured_by() -> None:
    """Under the attack both are equal; proofs tell them apart, and who gave them is said."""

    def proved(name: str, count: int, validation: float) -> Cell:
        flags = {"clean": (True,) * 20, "PGD": (True,) * 18 + (False,) * 2}
        threat = ThreatModel("Linf", 0.1)
        some = tuple(i < count for i in range(10))
        report = Report((0,) * 20, flags, {"PGD": threat}, (), "x", some, threat, {}, "IBP")
        return Cell(name, 0.05, 0.1, [report], validation)

    text = comparison_table([proved("LWM", 4, 0.3), proved("HYDRA", 7, 0.4)], data="d", threat="t")
    assert "clean 20, PGD 20, certified 10 by IBP" in text
    assert "| kept | method | lr | clean | PGD | certified |" in text
    low, high = (100 * end for end in wilson_interval(7, 10))
    assert f"| 70.0 [{low:.1f}, {high:.1f}] |" in text
    assert "5 % kept, certified, points above LWM" in text
    assert text.splitlines()[-1].startswith("- HYDRA: +30.0 [")
    plain = proved("LWM", 4, 0.3).plain()["accuracy"]
    assert plain == {"clean": [1.0], "PGD": [0.9], "certified": [0.4]}


@pytest.mark.parametrize("row", ["LWM at LAMP", "global magnitude", "iterative magnitude"])
def test_rows_by_magnitude_are_what_learning_is_measured_against(row: str) -> None:
    cells = [cell(row, 6, 0.4), cell("HARP", 4, 0.3)]
    lines = comparison_table(cells, data="d", threat="t").splitlines()[-2:]
    assert f"points above {row}, " in lines[0] and lines[1].startswith("- HARP: -10.0 ")


def test_the_gain_over_seeds_is_paired() -> None:
    learned = Cell("HYDRA", 0.05, 0.1, [report(18, n) for n in (6, 9, 12)], 0.6)
    fixed = Cell("LWM", 0.05, 0.1, [report(18, n) for n in (4, 8, 9)], 0.5)
    last = comparison_table([learned, fixed], data="d", threat="t").splitlines()[-1]
    mean, half = mean_interval([0.10, 0.05, 0.15])
    assert last.startswith(f"- HYDRA: {100 * mean:+.1f} ± {100 * half:.1f} (")
    assert last.count(",") == 2  # between three p-values


def test_of_one_seed_the_interval_is_the_paired_bootstrap_over_its_points() -> None:
    """Against resampled points, and unlike an unpaired one it sees who is right on which."""
    first = [True] * 60 + [False] * 40
    second = [True] * 45 + [False] * 35 + [True] * 5 + [False] * 15
    values = torch.tensor([a - b for a, b in zip(first, second, strict=True)], dtype=torch.double)
    generator = torch.Generator().manual_seed(1)
    drawn = values[torch.randint(100, (20_000, 100), generator=generator)].mean(1)
    expected = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    assert paired_bootstrap(first, second) == pytest.approx(expected, abs=0.0101)  # one point
    assert paired_bootstrap(first, first) == (0.0, 0.0)
    low, high = paired_bootstrap(first, [True] * 50 + [False] * 50)
    assert 0 < low < 0.1 < high


def test_hydra_minus_lwm_at_uniform_rates_is_there_whatever_its_sign() -> None:
    cells = [
        cell("LWM uniform", 12, 0.30),
        cell("LWM at LAMP", 14, 0.40),
        cell("HYDRA uniform", 9, 0.35),
    ]
    found = {(each.first, each.second, each.measure): each for each in differences(cells, 0.05)}
    pairs = [("HYDRA uniform", "LWM at LAMP"), ("HYDRA uniform", "LWM uniform")]
    assert set(found) == {(*pair, measure) for pair in pairs for measure in ("clean", "PGD")}
    each = found[(*pairs[1], "PGD")]
    assert each.mean == pytest.approx(-0.15) and each.low < -0.15 < each.high <= 0
    assert json.loads(json.dumps(each.plain()))["by_seed"] == [pytest.approx(-0.15)]
    last = comparison_table(cells, data="d", threat="t").splitlines()[-1]
    assert last.startswith("- HYDRA uniform minus LWM uniform: -15.0 [")


def test_without_a_magnitude_row_the_dense_network_is_the_reference() -> None:
    cells = [cell("dense", 4, None), cell("searched", 11, 0.5)]
    found = [each for each in differences(cells, 0.05) if each.measure == "PGD"]
    assert [(each.first, each.second, each.mean) for each in found] == [
        ("searched", "dense", pytest.approx(0.35))
    ]
    assert "points above dense, " in comparison_table(cells, data="d", threat="t")


def test_a_cells_interval_is_students_over_seeds_or_wilsons_of_one() -> None:
    several = Cell("LWM", 0.05, 0.1, [report(18, n) for n in (4, 8, 9)], 0.5)
    mean, half = mean_interval([0.2, 0.4, 0.45])
    assert several.interval("PGD") == pytest.approx((mean, mean - half, mean + half))
    assert cell("LWM", 9, 0.4).interval("PGD") == (0.45, *wilson_interval(9, 20))


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


def test_the_page_of_an_evaluation_says_which_row_is_of_which_threat_model() -> None:
    small, large = ThreatModel("Linf", 0.1), ThreatModel("Linf", 0.1, low=-1.0)
    flags = {"clean": (True, True), "PGD-2": (True, False), "PGD-3": (False, False)}
    one = Report((0, 1), flags, threats={"PGD-2": small, "PGD-3": small})
    two = Report((0, 1), flags, threats={"PGD-2": small, "PGD-3": large})
    told = page(one, title="one", about="")
    assert "<td>PGD-2</td>" in told and "<td>PGD-3</td>" in told and "Settings" not in told
    told = page(two, title="two", about="", settings={"seed": 3})
    assert f"<td>PGD-2, {small}</td>" in told and f"<td>PGD-3, {large}</td>" in told
    assert "<td>clean</td>" in told and "seed: 3" in told


def test_no_gain_where_there_is_nothing_to_compare() -> None:
    for rows in (["HYDRA", "HARP"], ["LWM uniform", "LWM ERK"]):
        cells = [cell(row, 6, 0.4) for row in rows]
        assert "points above" not in comparison_table(cells, data="d", threat="t")


def test_a_cell_is_plain_json() -> None:
    plain = json.loads(json.dumps(cell("LWM", 9, 0.4).plain()))
    assert plain == {
        "row": "LWM",
        "density": 0.05,
        "lr": 0.1,
        "validation": 0.4,
        "diverged": [],
        "accuracy": {"clean": [0.9], "PGD": [0.45]},
    }


KEPT = {
    "LWM": {"a.weight": [1, 10], "b.weight": [5, 10]},
    "HARP": {"a.weight": [3, 10], "b.weight": [3, 10]},
}
CURVES = {"5 % kept": {"LWM": [0.2, 0.6], "HARP": [0.5, 0.7]}, "1 % kept": {"LWM": [0.1, 0.3]}}


@pytest.mark.parametrize(
    "draw", [partial(plot_kept, KEPT), partial(plot_curves, CURVES)], ids=["kept", "curves"]
)
def test_a_plot_is_a_picture_and_leaves_nothing_else(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    draw(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        width, height = picture.size
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert width > 400 and height > 300 and colours is not None
    assert len(colours) > 10  # not an empty sheet
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_the_plot_bears_a_layer_that_one_network_lacks_zeros_in(tmp_path: Path) -> None:
    plot_kept({"x": {"a": [0, 10], "b": [10, 10]}}, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 0
