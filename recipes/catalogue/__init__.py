"""Lists for the user: presets, published numbers, and the files of a run.

``preset_list.py`` is the command ``list``, which lists all presets.
``published.py`` reads the published numbers of papers from ``published.yaml``.
``published_comparison.py`` compares the results of a run with the published numbers.
``run_files.py`` describes each file in the folder of a run.

Uses: papers, config.
Used by: dry, cli.
"""

from robust_plugin.recipes.catalogue.preset_list import (
    listing,
)
from robust_plugin.recipes.catalogue.published_comparison import (
    beside_published,
)

__all__ = ["listing", "beside_published"]
