"""The papers' methods, one file each.

Start with ``hydra.py``, then ``harp.py`` and ``magnitude.py`` (Sehwag et al. 2019).
``registry.py`` knows them by name and runs them.

 Uses: training, evaluate, config. Used by: compare, dry, catalogue, cli.
"""

from robust_plugin.recipes.papers.registry import (
    RECIPES,
    execute,
    finished_run,
    train_recipe,
)

__all__ = ["RECIPES", "execute", "finished_run", "train_recipe"]
