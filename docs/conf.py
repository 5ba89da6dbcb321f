"""The site: `make docs`. API pages are the docstrings; examples are run by tests/test_docs.py."""

import re
from importlib import metadata

project = "robust_plugin"
author = "the developers of robust_plugin"
release = metadata.version("robust-plugin")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = []
html_theme = "furo"
html_title = "robust_plugin"

myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Fields of a dataclass are in its "Attributes:", once.
napoleon_use_ivar = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _plain(app, what, name, obj, options, lines):
    """Docstrings are plain text: |w| is a magnitude, s* a star, and a table is a table."""
    text, table = [], False
    for line in lines:
        is_row = line.lstrip().startswith("|") and line.rstrip().endswith("|")
        if is_row and not table:
            text += ["", "::", ""]
        elif table and not is_row:
            text.append("")
        table = is_row
        text.append(f"    {line}" if is_row else _escaped(line))
    lines[:] = text


def _escaped(line):
    parts = re.split(r"(``.*?``)", line)
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts[::2] = [
        re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"([|*])", r"\\\1", part)) for part in parts[::2]
    ]
    return "".join(parts)


def setup(app):
    """Escape before napoleon (priority 500) reads the sections."""
    app.connect("autodoc-process-docstring", _plain, priority=400)
