"""The text table of a comparison, and its plots."""

import math
import re
from pathlib import Path

import pytest
from comparison_cells import cell, report
from pictures import check_picture

from robust_plugin import Report, ThreatModel, mcnemar, wilson_interval
from robust_plugin.recipes.compare.cells import Cell, mean_interval
from robust_plugin.recipes.compare.tables import comparison_table, plot_curves


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
    """Both rows are equal under the attack; only proofs differ, and the table names the prover."""

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
    assert last.count(",") == 2  # they separate three p-values


def test_no_gain_where_there_is_nothing_to_compare() -> None:
    for rows in (["HYDRA", "HARP"], ["LWM uniform", "LWM ERK"]):
        cells = [cell(row, 6, 0.4) for row in rows]
        assert "points above" not in comparison_table(cells, data="d", threat="t")


CURVES = {"5 % kept": {"LWM": [0.2, 0.6], "HARP": [0.5, 0.7]}, "1 % kept": {"LWM": [0.1, 0.3]}}


def test_the_plot_of_curves_is_a_picture_and_leaves_nothing_else(tmp_path: Path) -> None:
    plot_curves(CURVES, tmp_path / "plot.png")
    check_picture(tmp_path / "plot.png")
