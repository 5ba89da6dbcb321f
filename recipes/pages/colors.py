"""One colour for each pruning method, the same in every page, plot and table.

The colours differ for readers with red, green or blue colour blindness too, and each has a contrast
of at least 3 with white and with the dark page. Variants of one method, such as HYDRA at two kinds
of rates, share its colour and differ by line style and marker.
"""

from __future__ import annotations

import zlib

# A line style of matplotlib: its name, or an offset and the lengths of strokes and gaps.
LineStyle = str | tuple[int, tuple[int, ...]]

# Words in the name of a method and its colour. The first match counts, so the words of special
# kinds of magnitude pruning stand before the general ones.
_COLORS = (
    (("dense", "unpruned", "parent"), "#8b8d99"),
    (("hydra",), "#ec6d14"),
    (("harp",), "#a53ca6"),
    (("iterative", "gradual magnitude"), "#2f7556"),
    (("gradual",), "#7830fc"),
    (("global",), "#7f6126"),
    (("lwm", "magnitude"), "#4983fc"),
)

# Colours of methods with other names, such as those of a user.
_OTHERS = ("#c2347a", "#8a7a00", "#5b5bd0", "#b3413a", "#4f8a1f")

# Colour of results that belong to no method, such as those of a network from elsewhere.
PLAIN = "#0f8a94"

# Names of variants, or their last words, and their line style and marker in matplotlib's notation.
_STYLES: dict[str, tuple[LineStyle, str]] = {
    "gradual magnitude": ((0, (5, 1)), "X"),  # iterative magnitude has the same colour
    **dict.fromkeys(("dense", "hydra", "harp", "gradual", "lwm", "magnitude"), ("-", "o")),
    "uniform": ("-", "o"),
    "erk": ("--", "s"),
    "lamp": ("-.", "^"),
    "held": ("-", "D"),
    "hinge": ((0, (4, 1, 1, 1, 1, 1)), "P"),
}
_OTHER_STYLES: tuple[tuple[LineStyle, str], ...] = (
    (":", "v"),
    ((0, (5, 1)), "X"),
    ((0, (1, 1)), "<"),
    ((0, (3, 1, 1, 1)), ">"),
    ((0, (6, 2, 1, 2)), "p"),
)


def color_of(method: str) -> str:
    """Return the colour of a method as a hexadecimal code such as ``"#4983fc"``.

    A name that belongs to no known method always gets the same colour of a few others.

    Args:
        method: name of a recipe or of a row of a comparison, such as ``"HARP held"``; upper and
            lower case are the same.
    """
    name = method.lower()
    for words, color in _COLORS:
        if any(word in name for word in words):
            return color
    return _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]


def style_of(method: str) -> tuple[LineStyle, str]:
    """Return the line style and the marker of a method, in the notation of matplotlib.

    They tell variants of one method apart, which share a colour.

    Args:
        method: name of a recipe or of a row of a comparison, such as ``"HYDRA at LAMP"``.
    """
    name = method.lower()
    last = name if name in _STYLES else name.rpartition(" ")[2]
    # "HARP held from LAMP" and "HYDRA at LAMP, 90 epochs" are not the usual variants of these rates
    if last in _STYLES and " from " not in name and "," not in name:
        return _STYLES[last]
    return _OTHER_STYLES[zlib.crc32(name.encode()) % len(_OTHER_STYLES)]
