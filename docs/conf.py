"""Settings of the documentation site, which `make docs` builds."""

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
