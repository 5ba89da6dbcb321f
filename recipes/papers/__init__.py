"""The methods of the papers and our own, one file per method.

Start with ``hydra.py``, then read ``harp.py``, ``magnitude.py`` (Sehwag et al. 2019) and
``gradual.py``, which combines them and is the one to take.
``registry.py`` lists the recipes by name and runs them.

Uses: training, evaluate, config.
Used by: compare, dry, catalogue, cli.
"""

from robust_plugin.recipes.papers.registry import (
    RECIPES,
    Recipe,
    execute,
    finished_run,
    train_recipe,
)

__all__ = ["RECIPES", "Recipe", "execute", "finished_run", "train_recipe"]
