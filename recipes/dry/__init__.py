"""Dry runs: what a command would do, how long it would take and what it would write.

``run.py`` does this for one recipe, ``comparison.py`` for a comparison of several methods, and
``evaluation.py`` for the command ``evaluate``.
``measure.py`` trains a few steps of each stage and measures their time and memory.

Uses: papers, compare, evaluate, training, catalogue.
Used by: commands.
"""

from robust_plugin.recipes.dry.comparison import (
    dry_comparison,
)
from robust_plugin.recipes.dry.run import (
    dry_run,
)

__all__ = ["dry_comparison", "dry_run"]
