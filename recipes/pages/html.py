"""An evaluation as one HTML file that needs nothing beside it: tables, curve, classes, images."""

from __future__ import annotations

import base64
from typing import Any

STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
      color: #222}
table {border-collapse: collapse; margin: 1rem 0} td, th {padding: .25rem .8rem; text-align: right}
th {border-bottom: 1px solid #999} td:first-child, th:first-child {text-align: left}
img {max-width: 100%} .fails {color: #a00; font-weight: 600} .note {color: #555}
"""


HEAD = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
"""


def environment() -> Any:
    """Return jinja2's, which escapes what is not markup.

    Raises:
        ImportError: without jinja2.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ImportError("the HTML page needs: pip install jinja2") from error
    return Environment(autoescape=True)


def embedded(png: bytes) -> str:
    """Return an image as the address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
