"""How much of a network is kept in total, and how much of it each layer keeps.

Words of this package: a *group* is the set of weights or channels that share one mask, usually one
layer. Its *entries* are these weights or channels, and its *count* is how many of them it keeps.
Its *rate* is its density, the share of its entries that it keeps.

Start with ``budget.py``: the largest cost that may be kept, in parameters, FLOPs or channels, and
counts with at most this cost. ``quadratic.py`` computes the cost of given counts. ``rates.py``
has the fixed layer densities (uniform, ERK, LAMP, global), ``control.py`` the learned ones
(HARP), and ``density_logits.py`` the logits by which they are learned. ``schedules.py`` says how
the density falls over time. ``patterns_and_blocks.py`` has budgets for n:m patterns and for
channels in blocks. ``costs.py`` counts the cost of each weight or channel in a network, and
``plan.py`` computes the budget of a pruner, and the counts of its groups at one moment.

Not here: which entries are kept (``masks``, ``pruning/scores.py``).

Uses: masks, runtime.
Used by: pruning, channels.
"""

from robust_plugin.budget.budget import (
    Budget,
)
from robust_plugin.budget.schedules import (
    Cubic,
    Geometric,
    Rounds,
)

__all__ = ["Budget", "Cubic", "Geometric", "Rounds"]


def __dir__() -> list[str]:
    return sorted(__all__)
