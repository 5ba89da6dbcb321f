"""Plots as SVG: part of the page, in its colours, with ids of their own."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from robust_plugin.recipes.pages.svg import drawing, short_name, svg_of


def plot(**labels: str) -> Any:
    figure, axes = drawing()
    axes.plot([0, 1], [0, 1], color="#4983fc", marker="o")
    axes.fill_between([0, 1], [0, 1], color="black", alpha=0.2)
    axes.scatter([0.5], [0.5], color="white")
    axes.set(**labels)
    return figure


def test_black_and_white_are_the_colours_of_the_page_and_others_stay() -> None:
    svg = svg_of(plot(), "a line")
    assert "#000000" not in svg and "currentColor" in svg
    assert "#ffffff" not in svg and "var(--paper, #fff)" in svg and "#4983fc" in svg
    root = ElementTree.fromstring(svg)
    # the sheet below everything is transparent
    assert root.attrib["fill"] == "currentColor"
    first = next(element for element in root.iter() if "path" in element.tag)
    assert "fill: none" in first.attrib["style"]


def test_ids_that_are_used_are_there_once_and_differ_between_two_plots() -> None:
    pictures = [svg_of(plot(), title) for title in ("one", "two")]
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in pictures]
    for svg, own in zip(pictures, ids, strict=True):
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
        assert own and {name for pair in used for name in pair if name} == set(own)
    both = ids[0] + ids[1]
    assert len(both) == len(set(both))


def test_the_same_figure_gives_the_same_text() -> None:
    assert svg_of(plot(), "a") == svg_of(plot(), "a") != svg_of(plot(), "b")


def test_text_stays_text_and_the_picture_shrinks_with_its_place() -> None:
    svg = svg_of(plot(xlabel="épöch & <x>"), "a line")
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    assert "épöch & <x>" in texts and "Verdana" in svg
    assert root.attrib["viewBox"] == "0 0 345.6 230.4"  # 4.8 by 3.2 inches of 72 points
    assert {"width", "height"}.isdisjoint(root.attrib)
    assert "width: 100%" in root.attrib["style"] and "max-width: 461px" in root.attrib["style"]
    # what would hold for the whole page, or need another file, is gone
    assert all(word not in svg for word in ("<style", "<metadata", "<?xml", "DOCTYPE"))


def test_screen_readers_get_a_title() -> None:
    root = ElementTree.fromstring(svg_of(plot(title="accuracy")))
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == "accuracy"
    assert root[0].tag.endswith("title") and root[0].text == "accuracy"
    labelled = ElementTree.fromstring(svg_of(plot(xlabel="size", ylabel="accuracy")))
    assert labelled.attrib["aria-label"] == "accuracy against size"
    assert ElementTree.fromstring(svg_of(plot(), 'a "b" <c>')).attrib["aria-label"] == 'a "b" <c>'
    with pytest.raises(ValueError, match="give svg_of a title"):
        svg_of(plot())


def test_a_long_name_keeps_its_end() -> None:
    assert short_name("fc.weight") == "fc.weight" and short_name("a" * 22) == "a" * 22
    assert short_name(f"{'a' * 50}.conv1") == f"…{'a' * 15}.conv1"
