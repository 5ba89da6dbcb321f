"""Channels as groups: which dimensions of which layers come and go together.

Whoever knows a network's graph (``adapters.torch_pruning``) says which layers a channel runs
through; here they become a Group with one score a unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.masks.groups import Group, Member

# What mixes channels: a mask in front of the next layer is then not the same as removal.
_MIXES: dict[type[nn.Module], str] = {
    nn.LayerNorm: "normalises over the channels, so that removing one changes the others",
    nn.GroupNorm: "normalises over channels, so that removing one changes the others",
    nn.MultiheadAttention: "splits the channels into heads",
    nn.RNNBase: "is recurrent",
}


@dataclass(frozen=True)
class Axis:
    """One dimension of a parameter whose entries follow channels.

    Attributes:
        layer: the module that holds the parameter.
        layer_name: its name in the model.
        parameter: the parameter's name in the module.
        dim: the dimension.
        channel: which channel each of the layer's own channels follows, -1 for none.
        blocks: G of a grouped convolution: every G-th part of its channels has to keep the same
            positions, and an input dimension holds the positions of one part only.
        masked: whether the layer reads the channels, so that a mask on this dimension is exact.
    """

    layer: nn.Module
    layer_name: str
    parameter: str
    dim: int
    channel: Tensor
    blocks: int = 1
    masked: bool = False


def layer_axes(
    layer: nn.Module, name: str, channels: Sequence[int], roots: Sequence[int], *, makes: bool
) -> Iterator[Axis]:
    """Yield the dimensions of a layer's parameters that follow some channels running through it.

    Args:
        layer: the module.
        name: its name in the model.
        channels: those of the layer's own channels that follow.
        roots: which of the group's channels each of them follows.
        makes: True for output channels, False for input channels; the same where they are one.

    Raises:
        ValueError: with the reason why a mask on the next layer's input is not the same as
            removal, or why the layer cannot be cut.
    """
    for kinds, reason in _MIXES.items():
        if isinstance(layer, kinds):
            raise ValueError(f"{name} {reason}")
    dims = {key: 0 for key, _ in layer.named_parameters(recurse=False)}
    length, blocks, reads = 0, 1, False
    if isinstance(layer, nn.modules.conv._ConvNd):
        depthwise = layer.groups == layer.out_channels > 1
        if layer.groups > 1 and (
            layer.transposed or (depthwise and layer.in_channels != layer.out_channels)
        ):
            raise ValueError(f"{name} is a {type(layer).__name__} in groups that cannot be cut")
        reads = not (makes or depthwise)
        length = layer.in_channels if reads else layer.out_channels
        blocks = 1 if depthwise else layer.groups
        dims["weight"] = int(reads != layer.transposed)
    elif isinstance(layer, nn.Linear):
        reads = not makes
        length = layer.in_features if reads else layer.out_features
        dims["weight"] = int(reads)
    elif isinstance(layer, nn.Embedding):
        length, dims["weight"] = layer.embedding_dim, 1
    elif isinstance(layer, nn.PReLU):
        length, dims = layer.num_parameters, dims if layer.num_parameters > 1 else {}
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            raise ValueError(f"{name} has running statistics, which are not cut")
        length = layer.num_features
    if reads:
        dims = {"weight": dims["weight"]}
    for key, dim in dims.items():
        yield Axis(
            layer,
            name,
            key,
            dim,
            placed(length, channels, roots),
            blocks if key == "weight" else 1,
            reads,
        )


def placed(length: int, channels: Sequence[int], roots: Sequence[int]) -> Tensor:
    """Return which channel each of ``length`` entries follows, -1 for those not in ``channels``.

    Raises:
        ValueError: if there are fewer entries than that.
    """
    if max(channels) >= length:
        raise ValueError(f"a reshape takes them to channel {max(channels)} of {length}")
    follows = torch.full((length,), -1)
    follows[list(channels)] = torch.tensor(list(roots))
    return follows


def channel_group(name: str, channels: int, axes: Sequence[Axis]) -> Group:
    """Return the Group of some channels, whose units are what cannot be removed apart.

    Args:
        name: the group's.
        channels: how many channels the axes speak of.
        axes: every dimension that follows them.

    Raises:
        ValueError: if a dimension cannot shrink in proportion to the units.
    """
    unit = _units(channels, axes)
    units = int(unit.max()) + 1
    padded = torch.cat([unit, torch.tensor([-1])])
    members: dict[bool, list[Member]] = {True: [], False: []}
    for axis in axes:
        index = padded[axis.channel]
        index = index[: axis.layer._parameters[axis.parameter].shape[axis.dim]]  # type: ignore[union-attr]
        each = index[index >= 0].bincount(minlength=units)
        if int(each.min()) != int(each.max()):
            raise ValueError(
                f"{axis.layer_name}.{axis.parameter} has {int(each.min())} to {int(each.max())} "
                "entries a channel, so that it reads only a part of them, or a reshape mixes them"
            )
        whole = torch.equal(index, torch.arange(units))
        member = Member(
            axis.layer, axis.layer_name, axis.parameter, axis.dim, None if whole else index
        )
        members[axis.masked].append(member)
    return Group(tuple(members[True]), units, name, tuple(members[False]))


def _units(channels: int, axes: Sequence[Axis]) -> Tensor:
    """Number the sets of channels that grouped convolutions tie together, in channel order."""
    first = list(range(channels))  # the first channel of the set that each belongs to

    def root(channel: int) -> int:
        while first[channel] != channel:
            channel = first[channel]
        return channel

    for axis in axes:
        if axis.blocks == 1:
            continue
        if bool((axis.channel < 0).any()):
            raise ValueError(f"{axis.layer_name} is a grouped convolution of several producers")
        for tied in axis.channel.view(axis.blocks, -1).T.tolist():
            least = min(root(channel) for channel in tied)
            for channel in tied:
                first[root(channel)] = least
    sets = [root(channel) for channel in range(channels)]
    number = {least: place for place, least in enumerate(sorted(set(sets)))}
    return torch.tensor([number[least] for least in sets])
