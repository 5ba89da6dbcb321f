"""The pruner, its phases, its saved states, and the table of what a network keeps.

Start with ``pruner.py``: one ``Pruner`` for all methods. ``presets.py`` has the pruners of three
papers and gradual pruning, each a ``Pruner`` with some choices made. ``attachment.py`` checks the arguments of a
pruner and builds its masks, ``phases.py`` says which parameters are trained in which phase,
``shrinking.py`` lowers the density in the first of them,
``phase_run.py`` runs all phases as one loop, ``progress.py`` counts their steps, ``loading.py``
says what happens when a state is loaded, ``optimizer_hook.py`` updates the masks after optimizer
steps, ``scores.py`` has initial scores, ``state.py`` compares a saved state with a pruner,
``checkpoint.py`` saves and loads a model with pruner and optimizer, ``sparsity_table.py`` counts
the weights that are kept, and ``batch_norm.py`` measures BatchNorm's running statistics anew after
masks have changed.

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
