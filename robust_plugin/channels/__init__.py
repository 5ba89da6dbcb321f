"""Groups of channels that can only be removed together, and their removal from a network.

Start with ``groups.py``, which builds groups of channels from the dependencies between layers,
then ``cut.py``, which cuts channels from a copy of a network and checks the result.
``kept_entries.py`` lists which entries of each parameter stay, ``remove.py`` removes the channels
that a pruner has masked and saves and loads the smaller network, ``optimizer.py`` makes an
optimizer for the smaller network, ``ranking.py`` gives learned scores to torch-pruning,
``reach.py`` warns of layers that the trace of a network does not contain.

Not here: tracing the dependencies, which torch-pruning does (``adapters/torch_pruning/``).

Uses: pruning, budget, masks, copies, runtime.
Used by: adapters.
"""

from robust_plugin.channels.optimizer import (
    carry_optimizer,
)

__all__ = ["carry_optimizer"]


def __dir__() -> list[str]:
    return sorted(__all__)
