"""Remove channels from networks, by the dependency graph of torch-pruning.

torch-pruning finds the layers that share a channel and cuts them. It skips silently what it
cannot cut. Here the removal of each group is tried on a copy with random parameters before anything
is learned; groups that cannot be removed stay dense, with a warning. After the removal, the outputs
of the smaller network must equal those of the masked one.

Start with ``coupled.py``: ``channel_groups`` finds the groups. ``removal.py`` removes the masked
channels, ``importance.py`` removes them inside training loops that are written for torch-pruning's
pruners, ``graph.py`` traces and cuts a network with torch-pruning.
"""

try:
    import torch_pruning  # noqa: F401
except ImportError as error:
    raise ImportError("channel pruning needs torch-pruning; pip install torch-pruning") from error

from robust_plugin.adapters.torch_pruning.coupled import (
    channel_groups,
)
from robust_plugin.adapters.torch_pruning.importance import (
    LearnedPruner,
    learned_importance,
    learned_ratios,
)
from robust_plugin.adapters.torch_pruning.removal import (
    load,
    remove_channels,
)
from robust_plugin.channels.remove import (
    Removed,
    save,
)

__all__ = [
    "LearnedPruner",
    "Removed",
    "channel_groups",
    "learned_importance",
    "learned_ratios",
    "load",
    "remove_channels",
    "save",
]


def __dir__() -> list[str]:
    return sorted(__all__)
