"""A deep copy of a network, with clear errors for networks that cannot be copied or changed."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from robust_plugin.masks.prunable import refuse_fixed


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a network.

    Args:
        model: any network.
        memo: the memo of ``copy.deepcopy``: what takes the place of each object in the copy, by
            the id of the object. The copied objects are added to it. None for an empty memo.

    Raises:
        TypeError: if the model is no nn.Module.
        ValueError: with the reason, if the model holds a graph instead of layers or cannot be
            copied.
    """
    refuse_fixed(model)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a network may define __deepcopy__, which can raise anything
        raise ValueError(
            f"{type(model).__name__} cannot be copied, and only a copy is changed: {error}. "
            "Remove what copy.deepcopy does not take: tensors with a graph that a forward pass "
            "left in an attribute, or a hook that makes weights (for torch.nn.utils.weight_norm, "
            "call torch.nn.utils.remove_weight_norm)."
        ) from error
