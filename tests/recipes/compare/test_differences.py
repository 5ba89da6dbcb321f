"""Paired differences: their intervals, and the row that learned rows are compared with."""

import json

import pytest
import torch
from comparison_cells import cell

from robust_plugin.recipes.compare.differences import differences, paired_bootstrap
from robust_plugin.recipes.compare.tables import comparison_table


def test_of_one_seed_the_interval_is_the_paired_bootstrap_over_its_points() -> None:
    """Compare with resampled points; unlike an unpaired interval, it depends on the pairing."""
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
