"""Rows of methods on equal terms.

Start with ``comparison.py``, the command ``compare``. ``jobs.py`` lays out its trainings,
``cells.py`` holds one result of the table, ``differences.py`` the paired differences between
rows, ``tables.py`` and ``page.py`` show them.

 Uses: papers, training, config, pages, runtime. Used by: dry, cli.
"""

from robust_plugin.recipes.compare.comparison import (
    compare,
)
from robust_plugin.recipes.compare.jobs import (
    Job,
    jobs_of,
)

__all__ = ["compare", "Job", "jobs_of"]
