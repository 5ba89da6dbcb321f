"""How much of a network is kept in all, and how that is shared out among its layers.

Start with ``budget.py``: the total, in parameters, FLOPs or channels, met exactly. ``rates.py``
has the fixed rates (uniform, ERK, LAMP, global), ``control.py`` the learned ones (HARP),
``stepped.py`` the counts of n:m patterns and of channels in blocks, ``costs.py`` what one entry
costs, ``plan.py`` chooses among all these for a pruner.

Not here: which entries are kept (``masks``, ``pruning/scores.py``).

Uses: masks.
Used by: pruning, channels.
"""

from robust_plugin.budget.budget import (
    Budget,
)

__all__ = ["Budget"]
