"""Plots as SVG inside a page, in the colours of the page.

A plot is drawn by matplotlib in black on white and becomes part of the HTML: black lines and text
take the text colour of the page and white areas its background, so that the plot fits a light and
a dark page. Its text stays text, and it shrinks to the width of a phone.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any
from xml.etree import ElementTree

# Pixels of CSS per point of matplotlib: 96 and 72 to the inch.
_PIXELS = 96 / 72

# Most characters of a name beside an axis.
_LONGEST = 22

# The fonts of the text: the one matplotlib measures, then one of nearly the same width.
_FONTS = "'DejaVu Sans', Verdana, sans-serif"


def drawing(
    width: float = 4.8, height: float = 3.2, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Return a new matplotlib figure and its axes, to draw on and to give to ``svg_of``.

    The figure belongs to no window and to no list of open figures, so nothing has to close it. A
    width of 4.8 keeps text readable on a phone.

    Args:
        width: width in inches; a page shows one inch as at most 96 pixels.
        height: height in inches.
        rows: number of rows of axes.
        columns: number of columns of axes.
        **options: options of ``Figure.subplots``, such as ``sharey=True`` or ``squeeze=False``.

    Returns:
        tuple: the figure, and the axes as ``Figure.subplots`` returns them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def short_name(name: str) -> str:
    """Return the name of a layer or class for a plot: only its end if it is long.

    A longer name would leave no room for the plot.

    >>> short_name("features.stage4.block2.conv1")
    '…s.stage4.block2.conv1'
    """
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def svg_of(figure: Any, title: str = "") -> str:
    """Return a matplotlib figure as an ``<svg>`` element to write into a page as it is.

    The background is transparent, black is the text colour of the page (``currentColor``) and white
    its background (the CSS variable ``--paper``). The element is as wide as the figure, or as its
    place in the page if that is narrower. The same figure always gives the same text.

    Args:
        figure: the matplotlib figure; it is not closed.
        title: what the plot shows, for screen readers; the default is the titles or the axis
            labels of the figure. Two pictures of one page that look the same need two titles,
            because the ids inside are made from the title and the picture.

    Raises:
        ValueError: if there is no title and the figure has neither titles nor axis labels.
    """
    from matplotlib import rc_context

    title = title or _title_of(figure)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "robust_plugin"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    digest = hashlib.sha256(f"{title}\n{buffer.getvalue()}".encode()).hexdigest()
    _clean(root)
    _rename(root, f"s{digest[:8]}-")
    width = float(root.attrib.pop("width").removesuffix("pt")) * _PIXELS
    root.attrib.pop("height")
    root.attrib |= {
        "role": "img",
        "aria-label": title,
        "fill": "currentColor",  # text and areas without a colour of their own are black
        "style": f"width: 100%; height: auto; max-width: {width:.0f}px; stroke-linejoin: round; "
        "stroke-linecap: butt",
    }
    name = ElementTree.Element("title")
    name.text = title
    root.insert(0, name)
    return ElementTree.tostring(root, encoding="unicode")


def _title_of(figure: Any) -> str:
    """Return the titles of a figure as one text or, without titles, the labels of its axes."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    labels = [
        f"{axes.get_ylabel()} against {axes.get_xlabel()}"
        for axes in figure.axes
        if axes.get_ylabel() and axes.get_xlabel()
    ]
    found = "; ".join(dict.fromkeys(each for each in titles if each)) or "; ".join(labels)
    if not found:
        raise ValueError("the figure has no title and no axis labels; give svg_of a title.")
    return found


def _clean(root: ElementTree.Element) -> None:
    """Drop metadata and styles, plain names for tags, colours of the page for black and white.

    The ``<style>`` of matplotlib would apply to the whole page.
    """
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in [key for key in element.attrib if key.startswith("{")]:
            element.attrib[key.rpartition("}")[2]] = element.attrib.pop(key)
        style = element.attrib.get("style", "")
        style = style.replace("#000000", "currentColor").replace("#ffffff", "var(--paper, #fff)")
        style = re.sub(r"(font: [^;]*?)'DejaVu Sans'[^;]*", rf"\1{_FONTS}", style)
        if style:
            element.attrib["style"] = style
    root.attrib["xmlns"] = "http://www.w3.org/2000/svg"


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Give used ids a prefix and drop the others, so that no id is in a page twice."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    names = {name for pair in used for name in pair if name}
    for element in root.iter():
        if element.attrib.get("id") in names:
            element.attrib["id"] = prefix + element.attrib["id"]
        else:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            element.attrib[key] = re.sub(r"url\(#", f"url(#{prefix}", value)
        if element.attrib.get("href", "").startswith("#"):
            element.attrib["href"] = f"#{prefix}{element.attrib['href'][1:]}"
