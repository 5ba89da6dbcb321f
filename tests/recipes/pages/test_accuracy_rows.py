"""The accuracies of a report as a page shows them."""

import pytest
from sample_pages import BALL, report

from robust_plugin import Report, ThreatModel, wilson_interval
from robust_plugin.recipes.pages.accuracy_rows import (
    ACCURACY_HEAD,
    Shown,
    accuracy_rows,
    meaning,
    points_of,
    readings,
    rows_of,
    shown,
    title_of,
)


def test_an_accuracy_is_in_per_cent_with_wilsons_interval() -> None:
    low, high = wilson_interval(30, 60)
    found = shown(report(50, 30), "PGD-10")
    assert (found.value, found.low, found.high) == pytest.approx((50, 100 * low, 100 * high))


def test_a_table_has_a_row_for_each_accuracy_and_figures_of_the_same_points() -> None:
    rows = accuracy_rows(report(50, 30))
    assert [row[0] for row in rows] == ["clean accuracy", "PGD-10"]
    assert all(len(row) == len(ACCURACY_HEAD) and row[2] == "60" for row in rows)
    assert isinstance(rows[0][1], Shown) and rows[0][3] == "83.3 %"
    full = report(50, 30, more=True)
    assert rows_of(full) == ["clean", "PGD-10", "FAB", "AutoAttack", "worst case", "certified"]
    parts = accuracy_rows(full)
    # AutoAttack has half of the points; the clean accuracy is beside it, of this half
    few = {str(row[0]): row[1] for row in parts if row[2] == "30"}
    clean = next(value for name, value in few.items() if name.startswith("clean"))
    assert clean == shown(full.first(30), "clean") != shown(full, "clean")
    assert any("worst case" in name for name in few)


def test_a_row_names_its_threat_model_where_there_are_several() -> None:
    one = report(50, 30)
    assert title_of(one, "PGD-10") == "PGD-10" and title_of(one, "clean") == "clean accuracy"
    large = ThreatModel("Linf", 0.2)
    flags = {"clean": (True,), "PGD-2": (True,), "PGD-3": (False,)}
    two = Report((0,), flags, threats={"PGD-2": BALL, "PGD-3": large})
    assert (
        title_of(two, "PGD-3") == f"PGD-3, {large}" and title_of(two, "clean") == "clean accuracy"
    )


def test_each_row_is_read_in_sentences_with_its_number_of_points() -> None:
    full = report(50, 30, more=True)
    said = dict(readings(full))
    assert len(said) == len(rows_of(full)) and points_of(full, "worst case") == 30
    assert "the first 30 test points" in meaning(full, "worst case")
    assert f"the attack FAB finds no misclassified input within {BALL}" in said[f"FAB, {BALL}"]
    assert "for which IBP proves" in meaning(full, "certified")
