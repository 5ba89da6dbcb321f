"""What a mask is, which parameters it covers, and how it is put on a layer and taken off.

Start with ``select.py``: exact top-k and n:m selection, and the straight-through gradient.
``groups.py`` defines which parameters share one mask, and ``group_checks.py`` checks groups that
users make. ``prunable.py`` finds the weights of a network that masks can cover. ``group_mask.py``
is the mask of one group with its scores and density, ``mask_state.py`` its bytes in a state_dict,
``masked_weight.py`` the product of a weight and its mask, and ``masked_layer.py`` a layer that
computes with such products. ``attach.py`` puts masks on layers, and ``detach.py`` turns masked
layers into plain ones. ``transformed.py`` refuses layers that compute with another weight than the
one they store.

Not here: how many weights are kept (``budget``) and when masks change (``pruning``).

Uses: nothing of this project.
Used by: all rooms about pruned networks.
"""

from robust_plugin.masks.detach import (
    dense_state_dict,
    finalize,
    load_dense_state_dict,
)
from robust_plugin.masks.group_mask import (
    GroupMask,
)
from robust_plugin.masks.groups import (
    Group,
    Member,
)
from robust_plugin.masks.masked_weight import MaskedWeight
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
