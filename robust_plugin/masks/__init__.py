"""What a mask is, which parameters it covers, and how it is put on a layer and taken off.

Start with ``select.py``: exact top-k and n:m selection, and the straight-through gradient.
``groups.py`` defines which parameters share one mask, and ``group_checks.py`` checks groups that
users make. ``prunable.py`` finds the weights of a network that masks can cover. ``attach.py`` puts
masks on layers by torch's parametrizations, and ``detach.py`` turns masked layers into plain ones.
``transformed.py`` refuses layers that compute with another weight than the one they store.

Not here: how many weights are kept (``budget``) and when masks change (``pruning``).

Uses: nothing of this project.
Used by: all rooms about pruned networks.
"""

from robust_plugin.masks.attach import (
    GroupMask,
    MaskedWeight,
)
from robust_plugin.masks.detach import (
    dense_state_dict,
    finalize,
    load_dense_state_dict,
)
from robust_plugin.masks.groups import (
    Group,
    Member,
)
from robust_plugin.masks.prunable import (
    weight_groups,
)

__all__ = [
    "GroupMask",
    "MaskedWeight",
    "dense_state_dict",
    "finalize",
    "load_dense_state_dict",
    "Group",
    "Member",
    "weight_groups",
]


def __dir__() -> list[str]:
    return sorted(__all__)
