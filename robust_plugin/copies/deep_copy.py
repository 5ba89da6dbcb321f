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
        memo: the memo of ``copy.deepcopy``, a dict from the id of each object to the object that
            takes its place in the copy. The copied objects are added to it. None for an empty memo.

    Raises:
        TypeError: if the model is no nn.Module.
        ValueError: if the model is a graph made by TorchScript or torch.export, or cannot be
            copied; the message gives the reason.
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
