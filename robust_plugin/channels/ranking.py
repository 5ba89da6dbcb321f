"""The scores that a pruner has learned for channels, in the form that torch-pruning needs.

A host library such as torch-pruning removes channels in several steps of its own. It asks for a
ratio of channels to remove, and for the importance of the channels that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.channels.kept_entries import kept_entries
from robust_plugin.masks.attach import GroupMask
from robust_plugin.masks.group_checks import check_channels
from robust_plugin.masks.groups import Group, Member
from robust_plugin.pruning.pruner import Pruner


@dataclass(frozen=True)
class Ranking:
    """The order in which the units of one group are removed, least important first.

    Attributes:
        group: a group of channels.
        mask: the scores of its units, and the number of units to keep.
    """

    group: Group
    mask: GroupMask

    @property
    def ranks(self) -> Tensor:
        """The rank of each unit, all distinct: 1 for the first to be removed, n for the last.

        Equal scores are ordered as in the mask.
        """
        order = self.mask.scores.detach().abs().flatten().argsort(descending=True, stable=True)
        ranks = torch.empty_like(order, device="cpu")
        ranks[order.cpu()] = torch.arange(len(order), 0, -1)
        return ranks

    @property
    def kept(self) -> int:
        """The number of units that stay at the end."""
        return int(self.mask.kept)

    def at(self, step: int, steps: int) -> int:
        """Return the number of units that stay after a step; all steps remove about equally many.

        This is torch-pruning's count, int(n (1 - step/steps ratio)), with the property ``ratio``.

        Args:
            step: number of the step, from 0 to ``steps``.
            steps: number of steps in all.
        """
        return int(self.group.size * (1 - (step / float(steps)) * self.ratio))

    @property
    def ratio(self) -> float:
        """The share of units to remove, 1 - (kept + 1/2)/n.

        With it, int(n (1 - ratio)) is always ``kept``. With 1 - kept/n it would be one less for
        some n, because of float rounding.
        """
        return max(0.0, 1 - (self.kept + 0.5) / self.group.size)

    def remaining(self, member: Member) -> int:
        """Return the number of units that are left, by the length of a dimension that follows them.

        Raises:
            ValueError: if the length is no multiple of the number of entries per unit.
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
        """Return rank/n, in (0, 1], of every channel that a layer still has, in channel order."""
        alive = self.alive(self.remaining(member))
        unit = torch.arange(len(alive)) if member.index is None else member.index
        return self.ranks[unit[alive[unit]]] / self.group.size

    def alive(self, remaining: int) -> Tensor:
        """Return which units are left, bool, one per unit, if the least important went first."""
        return self.ranks > self.group.size - remaining


def rankings(pruner: Pruner) -> dict[nn.Module, tuple[Ranking, Member]]:
    """Return, for each layer that makes channels, the ranking of its group and its Member there.

    Raises:
        ValueError: if a group of the pruner is not one of channels, or a layer makes channels of
            two groups.
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
    """Return the share of channels to remove from each layer of the pruner's model.

    All layers that make the channels of a group have the same share; layers without scores have
    share 0.

    Raises:
        ValueError: if a group of the pruner is not one of channels.
    """
    found = rankings(pruner)
    return {
        layer: found[layer][0].ratio if layer in found else 0.0
        for layer in pruner.model.modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    }


def zero_scheduled_gradients(pruner: Pruner) -> None:
    """Set the gradient to zero wherever a weight reads channels that are scheduled for removal."""
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
    """Raise a ValueError unless every layer has the number of channels due after a step.

    Args:
        pruner: a pruner with groups of channels.
        step: number of the step that has just been made, from 0 to ``steps``.
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
