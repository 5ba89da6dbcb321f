"""Deep copies of networks, and errors for networks that cannot be copied or changed."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from robust_plugin.masks.prunable import refuse_fixed


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a network.

    Args:
        model: any network.
        memo: what takes the place of layers, by their ids; it gains what was copied, as of
            ``copy.deepcopy``.

    Raises:
        TypeError: if it is no nn.Module.
        ValueError: if it holds a graph, or cannot be copied, with the reason.
    """
    refuse_fixed(model)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # __deepcopy__ may be the network's own
        raise ValueError(
            f"{type(model).__name__} cannot be copied, and copies are what is changed: {error}. "
            "Remove what copy.deepcopy does not take: tensors with a graph that a forward pass "
            "left in an attribute, or a hook that makes weights (for torch.nn.utils.weight_norm, "
            "call torch.nn.utils.remove_weight_norm)."
        ) from error
