"""The one training loop that all recipes share.

Start with ``loop.py``: pre-training and the phases. ``run.py`` is the folder of a run,
``step.py`` one step of the optimizer, ``validation.py`` what is measured after an epoch,
``objective.py`` builds the loss from its settings, ``structure.py`` chooses weights or channels
and the initial scores, ``checks.py`` refuses settings that would fail hours later,
``acceleration.py`` is the border to accelerate.

Not here: the papers' methods (``papers``), the evaluation at the end (``evaluate/finish.py``).

Uses: config, data, models, runtime.
Used by: evaluate, papers, compare, dry.
"""

from robust_plugin.recipes.training.loop import (
    Diverged,
    pretrained,
    train,
)
from robust_plugin.recipes.training.run import (
    Run,
)

__all__ = ["Diverged", "pretrained", "train", "Run"]
