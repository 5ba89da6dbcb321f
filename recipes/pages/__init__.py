"""HTML and plots that several commands share.

``html.py`` makes pages from templates, ``plots.py`` draws to PNG files.

Not here: what stands on a page (``evaluate/page.py``, ``compare/page.py``).

Uses: the core only.
Used by: evaluate, compare, cli.
"""
