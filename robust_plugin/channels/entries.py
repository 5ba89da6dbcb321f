"""What a network costs that channels are removed from, and what is left of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from robust_plugin.budget import Products
from robust_plugin.groups import Group


@dataclass(frozen=True)
class Terms:
    """What counts n of units leave: fixed + sum_l costs_l n_l + sum c_ij n_i n_j.

    Attributes:
        costs: one a group.
        products: (i, j, c_ij).
        fixed: what does not depend on the counts.
    """

    costs: tuple[int, ...]
    products: Products
    fixed: int


@dataclass
class _Extent:
    """The length of a dimension: fixed + sum of entries a unit times the group's count."""

    fixed: int
    entries: dict[int, int] = field(default_factory=dict)


def count_terms(
    model: nn.Module, groups: Sequence[Group], macs: Mapping[tuple[str, str], int] | None
) -> Terms:
    """Count what a network costs whose groups keep n_l units, by its actual dependencies.

    A parameter's size is the product of its dimensions, each of which may be a sum over groups
    (concatenations) and a rest: a convolution between two groups costs c n_i n_j, a depthwise one
    or a norm c n_i, a layer outside all groups is fixed. Shortcuts are layers like others.

    Args:
        model: without masks.
        groups: with what is coupled to them.
        macs: multiply-adds one entry of (layer, parameter) takes part in; None counts entries.

    Raises:
        ValueError: if three dimensions of a parameter follow groups.
    """
    extents: dict[tuple[str, str], dict[int, _Extent]] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    seen: set[nn.Parameter] = set()
    for name, layer in model.named_modules():
        for key, parameter in layer.named_parameters(recurse=False):
            if macs is not None or parameter not in seen:  # tied weights are stored once
                shapes[name, key] = tuple(parameter.shape)
            seen.add(parameter)
    for number, group in enumerate(groups):
        for member in (*group.members, *group.coupled):
            place, dim = (member.layer_name, member.parameter), member.dim or 0
            length = shapes[place][dim]
            extent = extents.setdefault(place, {}).setdefault(dim, _Extent(length))
            covered = length if member.index is None else int((member.index >= 0).sum())
            extent.fixed -= covered
            each = covered // group.size
            extent.entries[number] = extent.entries.get(number, 0) + each
    costs, products, fixed = [0] * len(groups), dict[tuple[int, int], int](), 0
    for place, shape in shapes.items():
        positions = 1 if macs is None else macs.get(place, 0)
        moving = extents.get(place, {})
        rest = positions * prod(n for dim, n in enumerate(shape) if dim not in moving)
        if len(moving) > 2:
            raise ValueError(f"{'.'.join(place)}: {len(moving)} dimensions follow groups.")
        one, other = (*moving.values(), _Extent(1), _Extent(1))[:2]
        fixed += rest * one.fixed * other.fixed
        for i, each in one.entries.items():
            costs[i] += rest * each * other.fixed
        for j, each in other.entries.items():
            costs[j] += rest * each * one.fixed
        for i, each in one.entries.items():
            for j, every in other.entries.items():
                pair = (min(i, j), max(i, j))
                products[pair] = products.get(pair, 0) + rest * each * every
    return Terms(
        tuple(costs), tuple((i, j, c) for (i, j), c in sorted(products.items()) if c), fixed
    )


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
