"""Copies of a network with other layers in place of some: sparse for dense layers, or back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from robust_plugin.copies.deep_copy import copied
from robust_plugin.export.csr_layers import SparseLayer, filled

# The attributes in which torch stores the hooks of a module.
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_pre_hooks",
    "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


def with_layers(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a deep copy of a model in which some layers are replaced.

    A layer that has several names is replaced under each of them. The replacement gets copies of
    the layer's hooks, since hooks may change outputs and gradients.

    Args:
        model: any model; it is not changed.
        new: the replacement of each layer; the copy contains the replacement itself.

    Raises:
        ValueError: if the model or a hook cannot be copied.
    """
    memo: dict[int, Any] = {id(old): replacement for old, replacement in new.items()}
    found = copied(model, memo)
    for old, replacement in new.items():
        for key in _HOOKS:
            try:
                setattr(replacement, key, copy.deepcopy(getattr(old, key), memo))
            except Exception as error:  # a hook may hold things that cannot be copied
                raise ValueError(
                    f"a hook of a {type(old).__name__} cannot be copied to the layer in its place "
                    f"({error}); remove it."
                ) from error
    return found


def dense_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model with dense layers in place of CSR and 2:4 layers.

    Its outputs are the same up to rounding errors. The model is not changed.
    """
    new: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            new[layer] = layer.dense_layer()
        elif isinstance(layer, nn.Linear) and is_semi_structured(layer):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            new[layer] = filled(dense, layer.weight.to_dense(), layer.bias)
    return with_layers(model, new)


def is_semi_structured(layer: nn.Linear) -> bool:
    """Return whether the weight of a layer is in torch's compressed 2:4 format."""
    return isinstance(layer.weight.data, torch.sparse.SparseSemiStructuredTensor)
