"""The entries of each parameter that stay in a network when channels are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robust_plugin.masks.groups import Group

Kept = Mapping[tuple[str, str], Mapping[int, Tensor]]


def kept_entries(groups: Sequence[Group], masks: Sequence[Tensor]) -> Kept:
    """Return the entries of each parameter that stay when masked units are removed.

    Args:
        groups: groups of channels, with the parameters that are coupled to them.
        masks: one mask per group, bool, one entry per unit; True for a unit that stays.

    Returns:
        Mapping: (layer name, parameter) -> dimension -> indices of the entries that stay, in order.
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
    """Return the entries of a tensor that stay.

    Args:
        tensor: a parameter, or a tensor of its shape.
        kept: indices of the entries that stay, by dimension; other dimensions stay whole.
    """
    for dim, entries in kept.items():
        tensor = tensor.index_select(dim, entries.to(tensor.device))
    return tensor
