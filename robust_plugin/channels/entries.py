"""What a network costs that channels are removed from, and what is left of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robust_plugin.masks.groups import Group

Kept = Mapping[tuple[str, str], Mapping[int, Tensor]]


def kept_entries(groups: Sequence[Group], masks: Sequence[Tensor]) -> Kept:
    """Return which entries of which dimensions of which parameters are left by masks.

    Args:
        groups: with what is coupled to them.
        masks: bool, one entry a unit, for each group.

    Returns:
        Mapping: (layer name, parameter) -> dimension -> the entries that stay, in order.
    """
    stays: dict[tuple[str, str], dict[int, Tensor]] = {}
    for group, mask in zip(groups, masks, strict=True):
        whole = torch.cat([mask.flatten().cpu(), torch.tensor([True])])  # -1 reads the last
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
    """Return the entries that stay of a tensor of a parameter's shape."""
    for dim, entries in kept.items():
        tensor = tensor.index_select(dim, entries.to(tensor.device))
    return tensor
