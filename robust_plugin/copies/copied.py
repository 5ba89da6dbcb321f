"""Deep copies of networks, and errors for networks that cannot be copied or changed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn


def refuse_fixed(model: nn.Module) -> None:
    """Raise unless a model is made of layers that can be seen and changed.

    Raises:
        TypeError: if it is no nn.Module.
        ValueError: for modules of TorchScript and torch.export, which hold a graph instead.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give an nn.Module.")
    made_by = None
    if isinstance(model, torch.jit.ScriptModule):
        made_by = "TorchScript"
    elif isinstance(model, fx.GraphModule) and "train" in vars(model):  # which raises there
        made_by = "torch.export"
    if made_by is not None:
        raise ValueError(
            f"model was made by {made_by} and holds a graph instead of layers; give the nn.Module "
            "that it was made of."
        )


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
