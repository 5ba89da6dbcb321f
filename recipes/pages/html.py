"""Templates of HTML pages, and images that are written into the HTML itself.

The files ``*.html.j2`` beside this module are jinja2 templates. ``page.html.j2`` has the head and
the style of every page; ``evaluation.html.j2`` and ``comparison.html.j2`` extend it. A page loads
no other file.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any


def load_template(name: str) -> Any:
    """Return a jinja2 template, which escapes all values that it is filled with.

    Rendering raises an error if a value is missing.

    Args:
        name: file name in the folder of this module, such as ``"evaluation.html.j2"``.

    Raises:
        ImportError: if jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("the HTML page needs: pip install jinja2") from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(name)


def data_url(png: bytes) -> str:
    """Return a PNG image as a data URL, for the ``src`` of an ``<img>``."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
