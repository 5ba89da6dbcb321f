"""What a pruner learned about channels, in the order in which a host library may remove them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.channels.entries import kept_entries
from robust_plugin.masks.attach import GroupMask
from robust_plugin.masks.groups import Group, Member, check_channels
from robust_plugin.pruning.pruner import Pruner


@dataclass(frozen=True)
class Ranking:
    """The units of one group, least important first, while they disappear.

    Attributes:
        group: the channels.
        mask: their scores, and how many are to be kept.
    """

    group: Group
    mask: GroupMask

    @property
    def ranks(self) -> Tensor:
        """1 for the unit to go first, to n for the last; ties as in the mask, all distinct."""
        order = self.mask.scores.detach().abs().flatten().argsort(descending=True, stable=True)
        ranks = torch.empty_like(order, device="cpu")
        ranks[order.cpu()] = torch.arange(len(order), 0, -1)
        return ranks

    @property
    def kept(self) -> int:
        """How many units stay in the end."""
        return int(self.mask.kept)

    def at(self, step: int, steps: int) -> int:
        """How many units stay after one of several steps, each of as many units but for rounding.

        torch-pruning's count, int(n (1 - step/steps ratio)), of the ratio below.
        """
        return int(self.group.size * (1 - (step / float(steps)) * self.ratio))

    @property
    def ratio(self) -> float:
        """The share of units removed, 1 - (kept + 1/2)/n, which rounds to ``kept`` for certain.

        int(n (1 - ratio)) with ratio = 1 - kept/n is one less for some n, by float rounding.
        """
        return max(0.0, 1 - (self.kept + 0.5) / self.group.size)

    def remaining(self, member: Member) -> int:
        """Return how many units are left, by the length of one of the dimensions that follow them.

        Raises:
            ValueError: if the length is no multiple of the entries that a unit has there.
        """
        length, units = member.weight.shape[member.dim or 0], self.group.size
        each = units if member.index is None else len(member.index)
        left, over = divmod(length, each // units)
        if over or not 0 < left <= units:
            raise ValueError(
                f"{member.name} has {length} channels, which are no {each // units} for each of "
                f"up to {units} units of group {self.group.name}; was it cut by somebody else?"
            )
        return left

    def importance(self, member: Member) -> Tensor:
        """Return rank/n, in (0, 1], of every channel that a layer still has, in their order."""
        alive = self.alive(self.remaining(member))
        unit = torch.arange(len(alive)) if member.index is None else member.index
        return self.ranks[unit[alive[unit]]] / self.group.size

    def alive(self, remaining: int) -> Tensor:
        """Which units are left if the least important went first; bool, one a unit."""
        return self.ranks > self.group.size - remaining


def rankings(pruner: Pruner) -> dict[nn.Module, tuple[Ranking, Member]]:
    """Map every layer that makes channels to its group's ranking and its own place there.

    Raises:
        ValueError: if the pruner's groups are not of channels, or a layer makes those of two.
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
    """Return the share of channels to remove from every layer of the pruner's model.

    The same for all producers of a group, zero for layers that nobody scored.

    Raises:
        ValueError: if the pruner's groups are not of channels.
    """
    found = rankings(pruner)
    return {
        layer: found[layer][0].ratio if layer in found else 0.0
        for layer in pruner.model.modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    }


def hold_condemned(pruner: Pruner) -> None:
    """Take the gradient from everything that reads channels which are still to be removed."""
    remaining = {r.group.name: r.remaining(member) for r, member in rankings(pruner).values()}
    each = list(zip(pruner.groups, pruner.masks, strict=True))
    alive = [Ranking(group, mask).alive(remaining[group.name]) for group, mask in each]
    now = kept_entries(pruner.groups, alive)
    final = kept_entries(pruner.groups, [mask.mask for mask in pruner.masks])
    for member in {m.name: m for group in pruner.groups for m in group.members}.values():
        gradient = getattr(member.layer, member.parameter).grad
        if gradient is not None:
            place, dim = (member.layer_name, member.parameter), member.dim or 0
            condemned = ~torch.isin(now[place][dim], final[place][dim])
            gradient.movedim(dim, 0)[condemned.to(gradient.device)] = 0


def check_counts(pruner: Pruner, step: int, steps: int) -> None:
    """Raise unless every layer has the channels that one of several steps should leave.

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
