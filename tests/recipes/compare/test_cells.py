"""Intervals of the cells of a comparison."""

import json
import math

import pytest
from comparison_cells import cell, report

from robust_plugin import wilson_interval
from robust_plugin.recipes.compare.cells import Cell, mean_interval


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


def test_a_cells_interval_is_students_over_seeds_or_wilsons_of_one() -> None:
    several = Cell("LWM", 0.05, 0.1, [report(18, n) for n in (4, 8, 9)], 0.5)
    mean, half = mean_interval([0.2, 0.4, 0.45])
    assert several.interval("PGD") == pytest.approx((mean, mean - half, mean + half))
    assert cell("LWM", 9, 0.4).interval("PGD") == (0.45, *wilson_interval(9, 20))


def test_a_cell_is_plain_json() -> None:
    plain = json.loads(json.dumps(cell("LWM", 9, 0.4).plain()))
    assert plain == {
        "row": "LWM",
        "density": 0.05,
        "lr": 0.1,
        "validation": 0.4,
        "diverged": [],
        "epochs": 0,
        "accuracy": {"clean": [0.9], "PGD": [0.45]},
    }
