"""Groups: which weights share one score tensor and one rate."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust_plugin.masks.select import Pattern


@dataclass(frozen=True)
class Member:
    """One parameter that a group's mask covers.

    Attributes:
        layer: the module that holds it.
        layer_name: the module's name in the model.
        parameter: the parameter's name in the module.
        dim: None where the mask has the parameter's shape; else the dimension whose entries the
            mask selects (1 for a layer's input channels).
        index: which entry of the mask each entry of ``dim`` follows, -1 for none (behind a
            concatenation it may follow another group's); None for the identity.
    """

    layer: nn.Module
    layer_name: str
    parameter: str
    dim: int | None = None
    index: Tensor | None = None

    @property
    def name(self) -> str:
        """The parameter's dense name, as in the model's state_dict."""
        return f"{self.layer_name}.{self.parameter}" if self.layer_name else self.parameter

    @property
    def weight(self) -> Tensor:
        """The parameter, or the effective weight where a mask is attached."""
        weight: Tensor = getattr(self.layer, self.parameter)
        return weight.detach()

    def multiply_adds(self, macs: Mapping[tuple[str, str], int]) -> int:
        """Return the multiply-adds one entry takes part in, from ``flops.multiply_adds``.

        0 where the traced forward pass never reached the layer.
        """
        separate = self.parameter in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        return macs.get((self.layer_name, "in_proj_weight" if separate else self.parameter), 0)


@dataclass(frozen=True)
class Group:
    """What shares one score tensor and one rate: a weight, tied weights, or coupled channels.

    Attributes:
        name: the first member's name unless given.
        members: what the mask covers; one for a plain weight.
        channels: the number of mask entries where members have a ``dim``; None for weights.
        coupled: what no mask covers but goes when the channels are removed: the filters and
            biases that make them, and the norms between. Known, they make the budget count the
            network that will be left (``channels.count``).
    """

    members: tuple[Member, ...]
    channels: int | None = None
    name: str = field(default="")
    coupled: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("a group needs at least one member.")
        if any((member.dim is None) != (self.channels is None) for member in self.members):
            raise ValueError(
                f"group {self.members[0].name}: members have a dim exactly where the group has "
                "a number of channels."
            )
        if not self.name:
            object.__setattr__(self, "name", self.members[0].name)

    @property
    def size(self) -> int:
        """n_l, the number of entries that scores and mask have."""
        return self.channels or self.members[0].weight.numel()

    @property
    def producer(self) -> Member:
        """The filters that make a channel group: where its channels are removed.

        Those that it is named after, or the first where its name is of the user's own.

        Raises:
            ValueError: if no convolution or linear layer is coupled that makes all channels.
        """
        filters = [
            m
            for m in self.coupled
            if isinstance(m.layer, nn.Linear | nn.modules.conv._ConvNd)
            and m.parameter == "weight"
            and (m.index is None or bool((m.index >= 0).all()))
        ]
        named = [m for m in self.coupled if m.name == f"{self.name}.weight"]
        if not (named or filters):
            raise ValueError(
                f"group {self.name}: no convolution or linear layer among what is coupled makes "
                "its channels; take the groups of channel_groups(model, x[:1])."
            )
        return (named or filters)[0]

    @property
    def magnitudes(self) -> Tensor:
        """The weight, or each channel's L2 norm over all members; what initial scores see."""
        if self.channels is None:
            return self.members[0].weight
        squares = torch.zeros(self.channels, 1, device=self.members[0].weight.device)
        for member in self.members:
            rows = member.weight.movedim(member.dim or 0, 0).flatten(1).float()
            index = torch.arange(len(rows)) if member.index is None else member.index
            sums = rows.square().sum(1, keepdim=True)[(index >= 0).to(rows.device)]
            squares.index_add_(0, index[index >= 0].to(rows.device), sums)
        return squares.sqrt()

    def cost(self, macs: Mapping[tuple[str, str], int] | None) -> int:
        """Return what one kept entry costs: weights, or multiply-adds where those are given.

        Raises:
            ValueError: if the forward pass that counted them never reached a member.
        """
        total = 0
        for member in self.members:
            entries = 1 if self.channels is None else member.weight.numel() // self.channels
            positions = 1 if macs is None else member.multiply_adds(macs)
            if not positions:
                raise ValueError(
                    f"{member.name} did not run in the forward pass that counts FLOPs; exclude it, "
                    "or give example_inputs that reach it."
                )
            total += entries * positions
            if self.channels is None and macs is None:
                break  # Tied weights are stored once, yet computed with once a member.
        return total


def check_channels(groups: Sequence[Group]) -> None:
    """Raise unless all groups are of channels, and know what goes when those are removed.

    Raises:
        ValueError: naming the group that is not.
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
    """Return groups that somebody made for this model, if masks can attach as they say.

    Raises:
        ValueError: naming the member that is not the model's, is covered twice, or whose shape
            does not fit its group.
    """
    if not groups or exclude:
        raise ValueError(
            f"there are {len(groups)} groups, and exclude is {exclude!r}; give at least one group, "
            "and leave out of the groups what stays dense."
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    # The entries of each weight's dimension that a mask has already.
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
    """The entries of the member's dimension that follow its group; of all dimensions, one."""
    if member.dim is None:
        return torch.ones((), dtype=torch.bool)
    if member.index is None:
        return torch.ones(member.weight.shape[member.dim], dtype=torch.bool)
    return member.index.cpu() >= 0


def _check_shape(group: Group, member: Member) -> None:
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
    """Split off the names of groups whose rows an n:m pattern does not divide; they stay dense.

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
