"""Channels as groups, and their removal from the network.

Start with ``groups.py``, which turns a network's dependencies into groups of channels, then
``cut.py``, which replaces parameters by smaller ones. ``entries.py`` lists the parameter entries
that stay, ``remove.py`` removes what a pruner has masked, saves and loads it, ``optimizer.py``
carries an optimizer's state over, ``ranking.py`` hands learned scores to torch-pruning,
``reach.py`` warns of layers that no group covers.

Not here: tracing the dependencies, which torch-pruning does (``adapters/torch_pruning.py``).

Uses: pruning, budget, masks, copies, runtime.
Used by: adapters.
"""

from robust_plugin.channels.optimizer import (
    carry_optimizer,
)

__all__ = ["carry_optimizer"]
