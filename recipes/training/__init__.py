"""The training loop that all recipes share.

Start with ``loop.py``, which trains one stage: pretrain, prune or finetune. ``run.py`` manages the
folder of a run: settings, log and checkpoints. ``length.py`` counts the epochs and steps of a
stage. ``step.py`` takes one optimizer step, and ``averaging.py`` averages the weights over the
steps. ``statistics.py`` measures BatchNorm's running statistics anew, and ``validation.py`` clean
and robust accuracy, after each epoch. ``objective.py`` builds the training objective from its
settings. ``training_findings.py`` says what the log of a run shows to be wrong.
``weights_or_channels.py`` prepares a pruner for weights or for channels, and computes initial
scores. ``checks.py`` refuses settings that would fail only after hours of training.
``acceleration.py`` is the only file that uses the library accelerate.

Not here: the methods of the papers (``papers``) and the final evaluation
(``evaluate/end_of_run.py``).

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
