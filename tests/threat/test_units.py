"""Radii, noise levels and ranges: what is read, and what is refused."""

import math

import pytest
import torch

from robust_plugin import ThreatModel
from robust_plugin.threat.units import check_box, check_sigma, check_units, parse_bound, parse_eps


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("8/255", 8 / 255),
        (0.031, 0.031),
        ("0.25", 0.25),
        ("2.5/255", 2.5 / 255),
        (0, 0.0),
        ("2", 2.0),
        (1, 1.0),
    ],
)
def test_eps_is_a_number_or_a_fraction(given, value):
    assert parse_eps(given) == value
    assert ThreatModel("L2", eps=given).eps == value


@pytest.mark.parametrize(
    "eps", ["8/0", "8/", "8/2/2", -0.1, "-8/255", "abc", "", None, math.nan, math.inf, "1e999", [1]]
)
def test_bad_eps_is_named(eps):
    with pytest.raises(ValueError, match="eps is .*a number >= 0 or a fraction") as error:
        ThreatModel("Linf", eps=eps)
    assert repr(eps) in str(error.value)


def test_an_error_names_the_setting():
    with pytest.raises(ValueError, match="radius is 'x'; give a number >= 0"):
        parse_eps("x", name="radius")


@pytest.mark.parametrize("value", [1, "1", torch.tensor([1.0]), True])
def test_a_bound_is_one_number(value):
    assert parse_bound("low", value) == 1.0 and type(parse_bound("low", value)) is float


@pytest.mark.parametrize("value", [None, "a", [0, 0, 0], torch.zeros(3)])
def test_other_bounds_are_named(value):
    with pytest.raises(ValueError, match="high is .*; legal: one number"):
        parse_bound("high", value)


@pytest.mark.parametrize("sigma", [0, -0.5, math.nan, "0.25", None, torch.tensor(0.5)])
def test_a_sigma_that_is_no_number_above_0_is_refused(sigma):
    check_sigma(0.25)
    with pytest.raises(ValueError, match="sigma is .*; legal: a number above 0"):
        check_sigma(sigma)


def test_an_empty_box_is_refused():
    check_box(-math.inf, math.inf)
    for low, high in [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0)]:
        with pytest.raises(ValueError, match="low must be below high"):
            check_box(low, high)


def test_inputs_within_the_range_pass_and_others_are_named():
    check_units(torch.tensor([[-1.0, 3.0]]), -1, 3, "Smoothed")
    check_units(torch.tensor([[-1e-6, 1 + 1e-6]]), 0, 1, "Smoothed")  # rounding is no error
    for x in (torch.tensor([[-0.1, 1.0]]), torch.tensor([[0.0, 1.1]]), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match=r"outside \[0, 1\].*Smoothed\(low=..., high=...\)"):
            check_units(x, 0, 1, "Smoothed")
    for x in (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(0, 3), torch.tensor(0.5)):
        with pytest.raises(ValueError, match="the batch is empty, or not of floats"):
            check_units(x, 0, 1, "Smoothed")
    with pytest.raises(TypeError, match="inputs are a list; give a tensor"):
        check_units([[0.5]], 0, 1, "Smoothed")
