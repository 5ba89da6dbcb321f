"""Colours of methods: apart for every reader, visible on white and on dark, the same everywhere."""

import itertools
import re
from pathlib import Path

import pytest
from colour_vision import BLINDNESS, contrast, distance

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.read import read_preset
from robust_plugin.recipes.pages import colors
from robust_plugin.recipes.pages.colors import PLAIN, color_of, style_of

METHODS = (
    *("dense", "LWM", "iterative magnitude", "global magnitude", "HYDRA", "HARP", "gradual"),
)
STYLE = Path(colors.__file__).with_name("style.css.j2").read_text()
PAPERS = re.findall(r"--paper: (#\w{6})", STYLE)


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_methods_differ_for_every_reader(blindness: str) -> None:
    pairs = itertools.combinations({color_of(method) for method in METHODS}, 2)
    apart = [distance(one, other, blindness) for one, other in pairs]
    assert len(apart) == 21 and min(apart) > 15


def test_every_colour_stands_out_from_the_light_and_the_dark_page() -> None:
    assert len(PAPERS) == 2
    others = {color_of(f"method {i}") for i in range(99)}
    assert len(others) > 3
    for code in {color_of(method) for method in METHODS} | others | {PLAIN}:
        assert all(contrast(code, paper) >= 3 for paper in PAPERS), code


def test_a_recipe_has_the_colour_of_its_rows_and_rates_differ_by_style() -> None:
    assert color_of("magnitude") == color_of("LWM at ERK") != color_of("HYDRA")
    assert color_of("iterative magnitude") == color_of("Gradual magnitude")
    assert style_of("iterative magnitude") != style_of("Gradual magnitude")
    assert color_of("gradual") == color_of("gradual with learned rates") != color_of("magnitude")
    assert color_of("gradual") != color_of("gradual magnitude at LAMP") != color_of("LWM")
    for method, rates in (
        ("LWM", ("uniform", "at ERK", "at LAMP")),
        ("HYDRA", ("uniform", "at ERK", "at LAMP")),
        ("HARP", ("held", "by hinge", "held from ERK")),
        ("gradual", ("at ERK", "at LAMP", "with learned rates")),
    ):
        rows = [f"{method} {rate}" for rate in rates]
        assert {color_of(row) for row in rows} == {color_of(method.lower())}
        assert len({style_of(row) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "name", ["digits-table", "cifar10-table", "cifar10-channels", "cifar10-resnet18"]
)
def test_no_two_rows_of_the_main_tables_look_alike(name: str) -> None:
    rows = read_preset(f"compare/{name}", CompareConfig).rows
    assert len({(color_of(row), *style_of(row)) for row in rows}) == len(rows)


def test_an_unknown_method_always_gets_the_same_colour() -> None:
    # crc32("mine") is 0x69a8d393: the same in every process, unlike the hash of Python
    assert color_of("mine") == color_of("Mine") == colors._OTHERS[0x69A8D393 % len(colors._OTHERS)]
    assert color_of("mine") not in {color_of(method) for method in METHODS}
