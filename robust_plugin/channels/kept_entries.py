"""Which entries of each parameter stay in a network when channels are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robust_plugin.masks.groups import Group

Kept = Mapping[tuple[str, str], Mapping[int, Tensor]]


def kept_entries(groups: Sequence[Group], masks: Sequence[Tensor]) -> Kept:
    """Return which indices of each parameter dimension stay when masked units are removed.

    A unit is one channel, or several channels that can only be removed together.

    Args:
        groups: groups of channels, with the parameters that are coupled to them.
        masks: one bool mask per group, with one element per unit; True for a unit that stays.

    Returns:
        Mapping: for each (layer name, parameter name) of the groups, a dict from the dimension to
        the indices that stay along it, in ascending order.
    """
    stays: dict[tuple[str, str], dict[int, Tensor]] = {}
    for group, mask in zip(groups, masks, strict=True):
        # Index -1, for an entry that follows no unit, reads the True at the end.
        whole = torch.cat([mask.flatten().cpu(), torch.tensor([True])])
        for member in (*group.members, *group.coupled):
            index = torch.arange(group.size) if member.index is None else member.index
            dims = stays.setdefault((member.layer_name, member.parameter), {})
            before = dims.get(member.dim or 0, torch.tensor(True))
            dims[member.dim or 0] = before & whole[index]
    return {
        place: {dim: stay.nonzero().flatten() for dim, stay in dims.items()}
        for place, dims in stays.items()
    }


def select(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Return a smaller tensor with only those entries that stay when channels are removed.

    Args:
        tensor: a parameter, or a tensor of its shape.
        kept: the indices that stay along a dimension, by dimension; other dimensions stay whole.
    """
    for dim, entries in kept.items():
        tensor = tensor.index_select(dim, entries.to(tensor.device))
    return tensor
