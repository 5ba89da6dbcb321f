"""HTML pages and plots that several commands share.

``html.py`` loads the page templates, the files ``*.html.j2`` of this folder; ``plots.py`` draws
plots to PNG files. The content of the pages is chosen in ``evaluate/page.py`` and
``compare/page.py``.

Uses: the core only.
Used by: evaluate, compare, cli.
"""
