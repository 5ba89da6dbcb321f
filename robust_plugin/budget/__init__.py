"""How much of a network is kept in all, and how the layers share it.

Start with ``budget.py``: the total cost in parameters, FLOPs or channels, and counts that meet
it. ``quadratic.py`` has the cost as a function of the counts. ``rates.py`` has the fixed rates
(uniform, ERK, LAMP, global), ``control.py`` the learned rates (HARP), and ``logits.py`` the
logits that they are learned by. ``patterns_and_blocks.py`` has budgets for n:m patterns and for
channels in blocks. ``costs.py`` counts what one entry costs, and ``plan.py`` makes the budget and
the first counts of a pruner from all of these.

Not here: which entries are kept (``masks``, ``pruning/scores.py``).

Uses: masks, runtime.
Used by: pruning, channels.
"""

from robust_plugin.budget.budget import (
    Budget,
)

__all__ = ["Budget"]
