"""HTML pages and plots that several commands share.

``html.py`` loads the page templates, the files ``*.html.j2`` of this folder: ``page.html.j2`` is
the frame of every page, ``parts.html.j2`` has the parts that pages are put together from.
``svg.py`` makes plots that are part of a page, ``plots.py`` draws plots and writes PNG files, and
``colors.py`` gives each pruning method its colour. ``examples.py`` shows test points as pictures,
``confusion.py`` which classes are taken for which, and ``accuracy_rows.py``
the accuracies of a report. ``run_page.py`` is the page of a run, ``run_facts.py`` holds what it
shows, ``run_plots.py`` draws its plots and ``mask_pictures.py`` its masks. ``security_curve.py``
has the security curves of a run or a comparison. The content of the other pages is chosen in
``evaluate/page.py`` and ``compare/page.py``.

Uses: the core only.
Used by: evaluate, compare, cli.
"""
