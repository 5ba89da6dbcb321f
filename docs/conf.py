"""Settings of the documentation site, which `make docs` builds."""

from importlib import metadata

project = "robust_plugin"
author = "the developers of robust_plugin"
release = metadata.version("robust-plugin")

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = []
html_theme = "furo"
html_title = "robust_plugin"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
pygments_dark_style = "github-dark"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]  # cards and the glossary
# Notebooks keep the outputs that tests/system/test_docs_notebooks.py has checked.
nb_execution_mode = "off"
nb_merge_streams = True
# Outputs have no copy button.
copybutton_selector = (
    "div.highlight-python pre, div.highlight-sh pre, div.highlight-yaml pre, "
    "div.highlight-ipython3 pre"
)

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
# Fields of a dataclass are in its "Attributes:", once.
napoleon_use_ivar = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
