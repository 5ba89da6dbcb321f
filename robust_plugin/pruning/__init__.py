"""The pruner and what surrounds it.

Start with ``pruner.py``: one ``Pruner`` for all methods. ``presets.py`` names the papers' corners
of it, ``phases.py`` says what trains in which phase and follows the optimizer, ``scores.py`` has
initial scores, ``state.py`` the settings kept in its state, ``checkpoint.py`` saves and loads a
model with pruner and optimizer, ``sparsity_table.py`` counts what is kept.

Not here: removing channels from the network (``channels``).

Uses: masks, budget, runtime.
Used by: channels.
"""

from robust_plugin.pruning.presets import (
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
    "HarpPruner",
    "HydraPruner",
    "MagnitudePruner",
    "Pruner",
    "scaled_magnitude",
    "snip_scores",
    "Sparsity",
    "sparsity",
]
