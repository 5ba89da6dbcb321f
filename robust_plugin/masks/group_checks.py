"""Checks of groups before masks attach to them.

A group is a list of parameters that one mask covers. ``check_groups`` checks groups that the user
made, ``check_channels`` requires groups of channels that can be removed, and ``divisible`` selects
the groups that an n:m pattern fits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from robust_plugin.masks.groups import Group, Member
from robust_plugin.masks.select import Pattern


def check_channels(groups: Sequence[Group]) -> None:
    """Raise an error unless every group is a set of channels that can be removed.

    Raises:
        ValueError: naming the first group that does not say (in ``coupled``) which filters compute
            its channels.
    """
    for group in groups:
        if not group.coupled:
            raise ValueError(
                f"group {group.name} is not of channels that can be removed; give the pruner "
                "groups=channel_groups(model, x[:1])."
            )


def check_groups(
    model: nn.Module, groups: Sequence[Group], exclude: Collection[str | nn.Module] = ()
) -> tuple[Group, ...]:
    """Return ``groups`` as a tuple if every mask that they ask for can be attached to the model.

    Args:
        model: network without masks.
        groups: groups that the user gave.
        exclude: layers to leave dense; must be empty, because the groups say what is pruned.

    Raises:
        TypeError: if ``groups`` is not a sequence of groups.
        ValueError: if there are no groups, ``exclude`` is not empty, or a member is not a parameter
            of the model, would be masked twice, or has a shape that does not fit its group.
    """
    if not isinstance(groups, Sequence) or not all(isinstance(each, Group) for each in groups):
        raise TypeError(
            f"groups is {groups!r}; give groups as channel_groups(model, x[:1]) or "
            "weight_groups(model) returns them. Layers that stay dense go to exclude=."
        )
    if not groups or exclude:
        raise ValueError(
            f"there are {len(groups)} groups, and exclude is {exclude!r}; give at least one group, "
            "and leave out of the groups what stays dense."
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    # For each parameter, which entries of its dimension are already masked.
    seen: dict[tuple[nn.Module, str], Tensor] = {}
    for group in groups:
        for member in group.members:
            if modules.get(member.layer_name) is not member.layer or not isinstance(
                member.layer._parameters.get(member.parameter), nn.Parameter
            ):
                raise ValueError(
                    f"group {group.name}: {member.name} is no parameter of the model, or is "
                    "parametrized already."
                )
            _check_shape(group, member)
            key, covered = (member.layer, member.parameter), _covered(member)
            if key in seen and (
                seen[key].shape != covered.shape or bool((seen[key] & covered).any())
            ):
                raise ValueError(f"group {group.name}: {member.name} has a mask already.")
            seen[key] = seen[key] | covered if key in seen else covered
    return tuple(groups)


def _covered(member: Member) -> Tensor:
    """Return which positions along the member's dimension ``dim`` its group masks, as booleans.

    The shape is [length of the dimension]. If ``dim`` is None, so that the mask covers the whole
    parameter, the result is a scalar True.
    """
    if member.dim is None:
        return torch.ones((), dtype=torch.bool)
    if member.index is None:
        return torch.ones(member.weight.shape[member.dim], dtype=torch.bool)
    return member.index.cpu() >= 0


def _check_shape(group: Group, member: Member) -> None:
    """Raise a ValueError unless the member's shape and index fit the mask of the group."""
    shape = tuple(member.weight.shape)
    if group.channels is None or member.dim is None:
        fits = shape == tuple(group.members[0].weight.shape)
    elif not 0 <= member.dim < len(shape):
        fits = False
    elif member.index is None:
        fits = shape[member.dim] == group.channels
    else:
        fits = member.index.shape == shape[member.dim : member.dim + 1] and bool(
            ((member.index >= -1) & (member.index < group.channels)).all()
        )
    if not fits:
        raise ValueError(
            f"group {group.name}: {member.name} of shape {shape} does not fit a mask of "
            f"{group.channels or tuple(group.members[0].weight.shape)} along dim {member.dim}."
        )


def divisible(
    groups: Sequence[Group], pattern: Pattern | None
) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Return the groups that an n:m pattern fits, and the names of the others, which stay dense.

    A pattern fits a weight if m divides the length of its dimension 1. It fits no channels.

    Args:
        groups: groups of weights or channels.
        pattern: the pattern; None returns every group.

    Raises:
        ValueError: if the pattern fits no group.
    """
    if pattern is None:
        return tuple(groups), ()
    fits = tuple(g for g in groups if not g.channels and g.magnitudes.shape[1] % pattern.m == 0)
    if not fits:
        raise ValueError(
            f"pattern {pattern} fits no layer; it needs an input dimension divisible by "
            f"{pattern.m}."
        )
    return fits, tuple(group.name for group in groups if group not in fits)
