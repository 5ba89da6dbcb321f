"""The scores that a pruner has learned for channels, in the form that torch-pruning needs.

torch-pruning's pruners remove channels in several steps. They ask for the share of channels to
remove from each layer, and for the importance of the channels that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.channels.kept_entries import kept_entries
from robust_plugin.masks.group_checks import check_channels
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.groups import Group, Member
from robust_plugin.pruning.pruner import Pruner


@dataclass(frozen=True)
class Ranking:
    """The order in which the units of one group are removed, least important first.

    A unit is one channel, or several channels that can only be removed together. The group has n
    units before the first removal.

    Attributes:
        group: a group of channels.
        mask: the pruner's mask of this group, with a score per unit and the number of units to
            keep.
    """

    group: Group
    mask: GroupMask

    @property
    def ranks(self) -> Tensor:
        """The rank of each unit, int64, shape [n]: 1 for the first to be removed, n for the last.

        All ranks are distinct; units of equal scores are ordered as in the mask.
        """
        order = self.mask.scores.detach().abs().flatten().argsort(descending=True, stable=True)
        ranks = torch.empty_like(order, device="cpu")
        ranks[order.cpu()] = torch.arange(len(order), 0, -1)
        return ranks

    @property
    def kept(self) -> int:
        """The number of units that stay after the last step."""
        return int(self.mask.kept)

    def at(self, step: int, steps: int) -> int:
        """Return the number of units that are left after some steps of torch-pruning.

        All steps remove about equally many units. This is torch-pruning's own formula,
        int(n (1 - step / steps * ratio)), with the property ``ratio``.

        Args:
            step: number of steps made so far, from 0 to ``steps``.
            steps: number of steps in all.
        """
        return int(self.group.size * (1 - (step / float(steps)) * self.ratio))

    @property
    def ratio(self) -> float:
        """The share of units to remove, 1 - (kept + 1/2)/n, at least 0.

        With this share, torch-pruning's count int(n (1 - ratio)) is always ``kept``. With the share
        1 - kept/n the count would be one too low for some n, because of float rounding.
        """
        return max(0.0, 1 - (self.kept + 0.5) / self.group.size)

    def remaining(self, member: Member) -> int:
        """Return how many units are left in the network, from the length of a parameter dimension.

        Args:
            member: the parameter and its dimension that has entries for the units.

        Raises:
            ValueError: if the length is not a multiple of the number of entries per unit, or does
                not stand for 1 to n units.
        """
        length, units = member.weight.shape[member.dim or 0], self.group.size
        each = units if member.index is None else len(member.index)
        left, over = divmod(length, each // units)
        if over or not 0 < left <= units:
            raise ValueError(
                f"{member.name} has {length} channels, which are no {each // units} for each of "
                f"up to {units} units of group {self.group.name}; did something else cut it?"
            )
        return left

    def importance(self, member: Member) -> Tensor:
        """Return rank/n of the unit of every channel that a layer still has, in channel order.

        Args:
            member: the parameter of the layer and its dimension that has entries for the channels.

        Returns:
            Tensor: values in (0, 1], shape [channels left].
        """
        alive = self.alive(self.remaining(member))
        unit = torch.arange(len(alive)) if member.index is None else member.index
        return self.ranks[unit[alive[unit]]] / self.group.size

    def alive(self, remaining: int) -> Tensor:
        """Return which units are left if those of lowest rank are removed first; bool, shape [n].

        Args:
            remaining: number of units that are left.
        """
        return self.ranks > self.group.size - remaining


def rankings(pruner: Pruner) -> dict[nn.Module, tuple[Ranking, Member]]:
    """Return the Ranking of the output channels of each layer that computes channels of a group.

    Args:
        pruner: a pruner with groups of channels.

    Returns:
        dict: for each such layer, the Ranking of its group and the Member for the layer's weight.

    Raises:
        ValueError: if a group of the pruner is not a group of channels that can be removed, or a
            layer computes channels of two groups.
    """
    found: dict[nn.Module, tuple[Ranking, Member]] = {}
    check_channels(pruner.groups)
    for group, mask in zip(pruner.groups, pruner.masks, strict=True):
        for member in group.coupled:
            makes = isinstance(member.layer, nn.Linear | nn.modules.conv._ConvNd)
            if not makes or member.parameter != "weight":
                continue
            if member.index is not None and bool((member.index < 0).any()):
                raise ValueError(
                    f"{member.name} makes channels of more than one group, which torch-pruning's "
                    "ratios cannot say; use remove_channels."
                )
            found[member.layer] = (Ranking(group, mask), member)
    return found


def learned_ratios(pruner: Pruner) -> dict[nn.Module, float]:
    """Return the share of output channels to remove from each convolution and linear layer.

    All layers of the pruner's model that compute the channels of a group have the same share.
    Layers whose output channels have no scores have share 0.

    Args:
        pruner: a pruner with groups of channels.

    Raises:
        ValueError: if a group of the pruner is not a group of channels that can be removed, or a
            layer computes channels of two groups.
    """
    found = rankings(pruner)
    return {
        layer: found[layer][0].ratio if layer in found else 0.0
        for layer in pruner.model.modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    }


def zero_scheduled_gradients(pruner: Pruner) -> None:
    """Zero the gradients of all weights that read channels which later steps will remove.

    Args:
        pruner: a pruner with groups of channels; its model's gradients are changed in place.
    """
    remaining = {r.group.name: r.remaining(member) for r, member in rankings(pruner).values()}
    each = list(zip(pruner.groups, pruner.masks, strict=True))
    alive = [Ranking(group, mask).alive(remaining[group.name]) for group, mask in each]
    now = kept_entries(pruner.groups, alive)
    final = kept_entries(pruner.groups, [mask.mask for mask in pruner.masks])
    for member in {m.name: m for group in pruner.groups for m in group.members}.values():
        gradient = getattr(member.layer, member.parameter).grad
        if gradient is not None:
            place, dim = (member.layer_name, member.parameter), member.dim or 0
            scheduled = ~torch.isin(now[place][dim], final[place][dim])
            gradient.movedim(dim, 0)[scheduled.to(gradient.device)] = 0


def check_counts(pruner: Pruner, step: int, steps: int) -> None:
    """Raise a ValueError unless every layer has the number of channels that it should have by now.

    Args:
        pruner: a pruner with groups of channels.
        step: number of steps made so far, from 0 to ``steps``.
        steps: number of steps in all.

    Raises:
        ValueError: naming the layer, what it has and what it should have.
    """
    for found, member in rankings(pruner).values():
        left, wanted = found.remaining(member), found.at(step, steps)
        if left != wanted:
            raise ValueError(
                f"{member.layer_name} keeps {left} units of group {found.group.name} after step "
                f"{step} of {steps}, not {wanted}; was a group not pruned, or cut elsewhere?"
            )
