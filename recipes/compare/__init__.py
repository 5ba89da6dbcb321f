"""Comparison of methods on equal terms: one row per method, one table at the end.

Start with ``comparison.py``, the command ``compare``. ``jobs.py`` lists its trainings and
``job_runs.py`` runs them. ``cells.py`` has the results of one method at one density,
``differences.py`` the paired differences between methods, ``security_curves.py`` the security
curves. ``tables.py`` writes the text table, ``plots.py`` draws the plots, and ``page.py`` writes
the HTML report.

Uses: papers, evaluate, training, config, pages, runtime.
Used by: dry, cli.
"""

from robust_plugin.recipes.compare.comparison import compare
from robust_plugin.recipes.compare.jobs import Job, jobs_of

__all__ = ["Job", "compare", "jobs_of"]
