"""The text table of a comparison, and its plots."""

import math
import re
from dataclasses import replace

import pytest
from comparison_cells import cell, report

from robust_plugin import Report, ThreatModel, mcnemar, wilson_interval
from robust_plugin.recipes.compare.cells import Cell, mean_interval
from robust_plugin.recipes.compare.tables import comparison_table


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
    assert lines[0].startswith("5 % kept, PGD, minus that of LWM uniform, the magnitude row that ")
    baseline = cells[1].reports[0].flags["PGD"]
    p = [mcnemar(cells[i].reports[0].flags["PGD"], baseline) for i in (3, 4)]
    figures = r"points, 95 % interval \[.*\], n = 20, p ="
    assert re.fullmatch(rf"- HYDRA: \+25.0 {figures} {p[0]:.2g}: no clear difference", lines[1])
    assert re.fullmatch(rf"- HARP: -10.0 {figures} {p[1]:.2g}: no clear difference", lines[2])


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
    assert "5 % kept, certified, minus that of LWM" in text
    assert text.splitlines()[-1].startswith("- HYDRA: +30.0 points, 95 % interval [")
    # All points, on which nothing was proved, and the ten that the proofs are of.
    assert "On all 20 test points:\n\n| kept | method | lr | clean | PGD |\n" in text
    assert "On the first 10 test points:\n\n| kept | method | lr | clean | PGD | cert" in text
    ten = text.partition("On the first 10")[2]
    low, _ = wilson_interval(10, 10)
    assert f"| 5 % | HYDRA | 0.1 | 100.0 [{100 * low:.1f}, 100.0] | 100.0 [" in ten
    plain = proved("LWM", 4, 0.3).plain()["accuracy"]
    assert plain == {"clean": [1.0], "PGD": [0.9], "certified": [0.4]}


@pytest.mark.parametrize("row", ["LWM at LAMP", "global magnitude", "iterative magnitude"])
def test_rows_by_magnitude_are_what_learning_is_measured_against(row: str) -> None:
    cells = [cell(row, 6, 0.4), cell("HARP", 4, 0.3)]
    lines = comparison_table(cells, data="d", threat="t").splitlines()[-2:]
    assert f"minus that of {row}, " in lines[0] and lines[1].startswith("- HARP: -10.0 ")


def test_the_gain_over_seeds_is_paired() -> None:
    learned = Cell("HYDRA", 0.05, 0.1, [report(18, n) for n in (6, 9, 12)], 0.6)
    fixed = Cell("LWM", 0.05, 0.1, [report(18, n) for n in (4, 8, 9)], 0.5)
    last = comparison_table([learned, fixed], data="d", threat="t").splitlines()[-1]
    mean, half = mean_interval([0.10, 0.05, 0.15])
    shown = f"{100 * mean:+.1f} ± {100 * half:.1f} points, 95 % interval over seeds, n = 20, p = "
    assert last.startswith(f"- HYDRA: {shown}")
    assert len(last.partition("p = ")[2].partition(":")[0].split(", ")) == 3


def test_no_gain_where_there_is_nothing_to_compare() -> None:
    for rows in (["HYDRA", "HARP"], ["LWM uniform", "LWM ERK"]):
        cells = [cell(row, 6, 0.4) for row in rows]
        assert "minus that of" not in comparison_table(cells, data="d", threat="t")


def test_the_first_line_says_how_much_longer_the_pruned_networks_were_trained() -> None:
    cells = [cell("dense", 15, None), cell("LWM", 9, 0.4), cell("HYDRA", 12, 0.5)]
    for epochs, said in (
        ((0, 0), "PGD 20"),
        ((7, 7), "; pruned networks trained 7 epochs longer than the dense one"),
        ((9, 7), "; pruned networks trained 7 to 9 epochs longer than the dense one"),
    ):
        pruned = [replace(each, epochs=n) for each, n in zip(cells[1:], epochs, strict=True)]
        line = comparison_table([cells[0], *pruned], data="d", threat="t").splitlines()[0]
        assert line.endswith(said)
