"""Security curves: their values in JSON, the plot, and the finding in the whole box."""

import json
import math
import re
from dataclasses import replace

import pytest
from sample_pages import security_curve

from robust_plugin import SecurityCurve
from robust_plugin.recipes.pages.colors import color_of
from robust_plugin.recipes.pages.security_curve import (
    CurveUnderPGD,
    curves_of_run,
    how_to_read,
    security_plot,
)
from robust_plugin.stats import wilson_interval


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_line_has_the_counts_and_wilsons_intervals() -> None:
    counts = (55, 50, 30, 12, 9)
    found = security_curve(*counts, 3).line
    assert [mean for mean, _, _ in found] == [count / 60 for count in counts]
    assert [ends for _, *ends in found] == [list(wilson_interval(count, 60)) for count in counts]


def test_a_curve_goes_through_json() -> None:
    curve = security_curve(55, 50, 30, 12, 9, 3)
    assert math.inf in curve.curve.distances
    text = json.dumps(curve.plain(), allow_nan=False)
    assert CurveUnderPGD.from_plain(json.loads(text)) == curve
    assert CurveUnderPGD.from_plain(None) is None


@pytest.mark.parametrize(
    ("right", "left", "wrong"),
    [(60, 0, False), (60, 1, False), (60, 2, True), (50, 2, True), (49, 40, False)],
)
def test_more_than_2_percent_in_the_whole_box_are_a_finding(
    right: int, left: int, wrong: bool
) -> None:
    """1 of 60 points is 1.7 %; with fewer than 50 points there is no verdict."""
    said = security_curve(right, right, right, right, right, left).finding("harp")
    assert bool(said) == wrong
    if wrong:
        assert f"PGD-10 leaves {left} of {right} points, and up to 2 % are allowed" in said


def test_the_plot_names_the_networks_the_radii_and_eps() -> None:
    curve = security_curve(55, 50, 30, 12, 9, 3)
    svg = security_plot({"dense": curve.line, "harp": curve.line}, curve)
    assert {"dense", "harp", "0", "½", "1", "2", "4", "accuracy, %"} <= set(words(svg))
    assert "radius as a multiple of eps, Linf eps=0.1" in words(svg)
    assert color_of("dense") in svg and color_of("harp") in svg
    at = replace(curve, eps=8 / 255, curve=SecurityCurve("L2", curve.curve.distances))
    assert "radius as a multiple of eps, L2 eps=0.0313725" in words(
        security_plot({"": at.line}, at)
    )


def test_the_section_of_a_run_says_how_to_read_it() -> None:
    curve = security_curve(55, 50, 30, 12, 9, 3)
    shown = curves_of_run({"dense": curve, "harp": security_curve(55, 50, 30, 12, 9, 0)})
    assert shown.caption.startswith(how_to_read(curve)) and "95 % intervals" in shown.caption
    assert "the first 60 test points that PGD-10, from one random start" in shown.caption
    assert shown.findings == (curve.finding("dense"),)
