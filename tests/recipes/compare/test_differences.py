"""Paired differences: their intervals, and the row that learned rows are compared with."""

import json
from dataclasses import replace

import pytest
from comparison_cells import cell, report

from robust_plugin.recipes.compare.cells import Cell
from robust_plugin.recipes.compare.differences import difference, differences
from robust_plugin.recipes.compare.tables import comparison_table
from robust_plugin.stats import paired_interval


def test_of_one_seed_the_interval_is_paired_over_its_points() -> None:
    """Unlike the intervals of the two accuracies, it depends on which points each gets right."""
    learned, fixed = cell("HYDRA", 12, 0.5), cell("LWM", 6, 0.4)
    apart = cell("HYDRA", 12, 0.5, first=6)  # right at other points than LWM
    near, far = (difference(each, fixed, "PGD") for each in (learned, apart))
    assert near.mean == far.mean == pytest.approx(0.3)
    assert (near.low, near.high) == paired_interval(6, 0, 20)
    assert (far.low, far.high) == paired_interval(12, 6, 20)
    assert near.n == 20 and near.p_values == (0.03125,) and near.better == "HYDRA"
    assert far.p_values == (pytest.approx(0.2379, abs=1e-4),) and far.better is None


def test_the_verdict_says_who_is_better_and_who_trained_longer() -> None:
    dense = cell("dense", 4, None)
    for right, said in (
        (14, "HYDRA is better"),
        (6, "no clear difference"),
        (0, "no clear difference"),
    ):
        pruned = replace(cell("HYDRA", right, 0.5), epochs=7)
        found = difference(pruned, dense, "PGD")
        assert found.verdict == f"{said}; HYDRA trained 7 epochs longer"
        assert str(found).endswith(f", n = 20, p = {found.p_values[0]:.2g}: {found.verdict}")
    turned = difference(dense, replace(cell("HYDRA", 14, 0.5), epochs=1), "PGD")
    assert turned.verdict == "HYDRA is better; HYDRA trained 1 epoch longer"
    assert difference(dense, cell("HYDRA", 14, 0.5), "PGD").verdict == "HYDRA is better"


def test_over_seeds_a_method_is_better_if_the_t_interval_says_so() -> None:
    fixed = Cell("LWM", 0.05, 0.1, [report(18, n) for n in (4, 8, 9)], 0.5)
    for rights, better in (((9, 13, 14), "HYDRA"), ((4, 10, 9), None), ((2, 6, 7), "LWM")):
        found = difference(
            Cell("HYDRA", 0.05, 0.1, [report(18, n) for n in rights], 0.6), fixed, "PGD"
        )
        assert found.better == better, str(found)


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
    assert each.mean == pytest.approx(-0.15) and each.low < -0.15 < each.high < 0.05
    assert json.loads(json.dumps(each.plain()))["by_seed"] == [pytest.approx(-0.15)]
    last = comparison_table(cells, data="d", threat="t").splitlines()[-1]
    assert last.startswith("- HYDRA uniform minus LWM uniform: -15.0 points, 95 % ")


@pytest.mark.parametrize("best", ["LWM at LAMP", "gradual magnitude"])
def test_gradual_magnitude_is_a_magnitude_row_and_gradual_a_learned_one(best: str) -> None:
    validation = {"LWM at LAMP": 0.4, "gradual magnitude": 0.5}
    validation[best] = 0.6
    cells = [cell(row, 10, value) for row, value in validation.items()]
    cells += [cell("gradual", 14, 0.7), cell("gradual with learned rates", 13, 0.7)]
    found = [each for each in differences(cells, 0.05) if each.measure == "PGD"]
    assert [(each.first, each.second) for each in found] == [
        ("gradual", best),
        ("gradual with learned rates", best),
    ]
    assert found[0].mean == pytest.approx(0.2)


def test_without_a_magnitude_row_the_dense_network_is_the_reference() -> None:
    cells = [cell("dense", 4, None), cell("searched", 11, 0.5)]
    found = [each for each in differences(cells, 0.05) if each.measure == "PGD"]
    assert [(each.first, each.second, each.mean) for each in found] == [
        ("searched", "dense", pytest.approx(0.35))
    ]
    text = comparison_table(cells, data="d", threat="t")
    assert "PGD, minus that of dense, which is not pruned (p" in text
