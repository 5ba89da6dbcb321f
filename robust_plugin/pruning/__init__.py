"""The pruner, its phases, its saved states, and the table of what a network keeps.

Start with ``pruner.py``: one ``Pruner`` for all methods. ``presets.py`` has the pruners of three
papers and of gradual pruning, each a ``Pruner`` with some choices made.

- When a pruner is attached: ``attachment.py`` checks its arguments and builds its masks,
  ``attached.py`` holds what was built, and ``scores.py`` has initial scores.
- From phase to phase: ``phases.py`` says which parameters are trained in which phase,
  ``shrinking.py`` lowers the density in the first of them, ``pruner_state.py`` holds what changes,
  ``progress.py`` counts the steps, and ``phase_run.py`` runs all phases as one loop.
- At each optimizer step: ``optimizer_hook.py`` has the hooks, ``following.py`` updates the masks in
  them, and ``first_step.py`` checks the first step of a phase.
- Saved states: ``saving.py`` makes and loads them, ``state.py`` compares one with a pruner,
  ``loading.py`` says what happens when a state is loaded into the network, and ``checkpoint.py``
  saves and loads a model with pruner and optimizer.
- Masks that have changed: ``sparsity_table.py`` counts the weights that are kept, and
  ``batch_norm.py`` measures BatchNorm's running statistics anew.

Not here: removing channels from the network (``channels``).

Uses: masks, budget, runtime.
Used by: channels.
"""

from robust_plugin.pruning.batch_norm import (
    recompute_statistics,
)
from robust_plugin.pruning.presets import (
    GradualPruner,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
)
from robust_plugin.pruning.pruner import (
    Pruner,
)
from robust_plugin.pruning.scores import (
    scaled_magnitude,
    snip_scores,
)
from robust_plugin.pruning.sparsity_table import (
    Sparsity,
    sparsity,
)

__all__ = [
    "GradualPruner",
    "HarpPruner",
    "HydraPruner",
    "MagnitudePruner",
    "Pruner",
    "recompute_statistics",
    "scaled_magnitude",
    "snip_scores",
    "Sparsity",
    "sparsity",
]


def __dir__() -> list[str]:
    return sorted(__all__)
