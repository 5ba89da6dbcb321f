"""Remove channels from networks, by the dependency graph of torch-pruning.

torch-pruning finds the layers that share a channel and cuts them. It skips silently what it
cannot cut. Here that is an error: each group is tried on a randomised copy before anything is
learned, and a network without its channels is compared to the masked one.

Start with ``coupled.py``: ``channel_groups`` finds the groups. ``removal.py`` removes the masked
channels, ``importance.py`` does so inside training loops for torch-pruning's pruners,
``graph.py`` has the calls of torch-pruning that both use.
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
