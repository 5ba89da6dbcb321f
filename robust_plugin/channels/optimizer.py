"""An optimizer for a network whose channels were removed, with the momentum of the old one."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.channels.kept_entries import kept_entries, select
from robust_plugin.masks.masked_layer import is_of_masks
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.calls import explain_wrong_calls


@explain_wrong_calls
def carry_optimizer(
    optimizer: torch.optim.Optimizer, pruner: Pruner, small: nn.Module
) -> torch.optim.Optimizer:
    """Return an optimizer of the smaller network that continues from the state of ``optimizer``.

    Settings, step counts and the order of parameters are the same. Momentum, and other state that
    has the shape of its parameter, is cut as the parameter was. The pruner's scores and learned
    layer densities are left out, since ``small`` has none. A learning-rate scheduler belongs to its
    optimizer: make a new scheduler, with ``last_epoch``.

    Args:
        optimizer: the optimizer of the network that ``pruner`` has masked; it is not changed.
        pruner: the pruner whose masked channels were removed.
        small: the network without these channels, as ``remove_channels`` returns it.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if the optimizer holds a parameter that the network does not have, if ``small``
            is not the network that these masks leave, or if the state of a cut parameter has a
            tensor of another shape that holds more than one number.
    """
    kinds = (optimizer, torch.optim.Optimizer), (pruner, Pruner), (small, nn.Module)
    if not all(isinstance(each, kind) for each, kind in kinds):
        given = ", ".join(type(each).__name__ for each, _ in kinds)
        raise TypeError(
            f"the arguments are ({given}); give carry_optimizer(optimizer, pruner, small), with "
            "small as remove_channels(pruner).model."
        )
    model = pruner.model
    names = {p: name for name, p in model.named_parameters() if not is_of_masks(name)}
    learned = {p for mask in pruner.masks for p in mask.parameters()}
    new = dict(small.named_parameters())
    kept = kept_entries(pruner.groups, [mask.mask for mask in pruner.masks])
    carried = copy.copy(optimizer)  # the same class and settings, whatever its constructor takes
    carried.state = defaultdict(dict)
    carried.param_groups = []
    for group in optimizer.param_groups:
        parameters = []
        for old in group["params"]:
            if old in learned:
                continue
            name = names.get(old)
            if name is None:
                raise ValueError(
                    "the optimizer holds a parameter that the pruned network has not; give the "
                    "optimizer of pruner.model, built after the pruner was attached."
                )
            layer, _, key = name.rpartition(".")
            dims = kept.get((layer, key), {})
            if name not in new or select(old, dims).shape != new[name].shape:
                raise ValueError(
                    f"{name} is not in the small network as these masks leave it; give what "
                    "remove_channels made of this pruner."
                )
            parameters.append(new[name])
            state: dict[str, Any] = {
                entry: _cut(value, old, dims, f"{entry} of {name}")
                for entry, value in optimizer.state.get(old, {}).items()
            }
            if state:
                carried.state[new[name]] = state
        carried.param_groups.append({**group, "params": parameters})
    return carried


def _cut(value: Any, old: Tensor, dims: Mapping[int, Tensor], name: str) -> Any:
    """Return a copy of one value of an optimizer's state, cut as its parameter was.

    Args:
        value: the value, such as the momentum (a tensor) or the step count of a parameter.
        old: the parameter before the removal.
        dims: for each dimension that was cut, the indices of the entries that stay.
        name: name of the value and its parameter in error messages.

    Raises:
        ValueError: if the parameter was cut and the value is a tensor of another shape that holds
            more than one number.
    """
    if not isinstance(value, Tensor):
        return copy.copy(value)
    if value.shape == old.shape:
        return select(value, dims).clone()
    if value.numel() == 1 or not dims:
        return value.clone()
    raise ValueError(
        f"the optimizer's {name} has shape {tuple(value.shape)}, its parameter {tuple(old.shape)}: "
        "it cannot be cut alike; build a new optimizer."
    )
