"""Build a Group of channels from the parameter dimensions that shrink when they are removed.

The caller (``adapters.torch_pruning``) traces the network and says which layers each channel runs
through. A Group has one score per unit. A unit is one channel, or several channels that can only
be removed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.masks.groups import Group, Member

# Layers that mix channels: a mask at the input of the next layer has another effect than removing
# the channels.
_MIXES: dict[type[nn.Module], str] = {
    nn.LayerNorm: "normalises over the channels, so that removing one changes the others",
    nn.GroupNorm: "normalises over channels, so that removing one changes the others",
    nn.MultiheadAttention: "splits the channels into heads",
    nn.RNNBase: "is recurrent",
}


@dataclass(frozen=True)
class Axis:
    """One dimension of a parameter that gets shorter when channels of a group are removed.

    A channel of a layer follows a channel of the group if it is removed together with it.

    Attributes:
        layer: the module that holds the parameter.
        layer_name: name of the module in the model.
        parameter: name of the parameter in the module.
        dim: index of the dimension in the parameter's shape.
        channel: for each channel of the layer, the index of the channel of the group that it
            follows, or -1 if it follows none; shape [channels of the layer].
        blocks: ``groups`` of a grouped convolution; 1 for depthwise convolutions and other layers.
            The channels of such a convolution form this number of blocks. All blocks must keep the
            same positions, because dimension 1 of the weight has entries for one block only.
        masked: whether the channels are inputs of the layer; then a mask on this dimension has the
            same effect as removing the channels.
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
    """Yield each parameter dimension of a layer that gets shorter when channels are removed.

    Args:
        layer: the module.
        name: name of the module in the model.
        channels: indices of the layer's channels that are removed with channels of a group.
        roots: for each element of ``channels``, the index of the group's channel that it is removed
            with.
        makes: True if ``channels`` are output channels of the layer, False for input channels. It
            has no effect for layers such as BatchNorm, whose input and output channels are the
            same.

    Raises:
        ValueError: if masking the inputs of the next layer has another effect than removing the
            channels, or if the layer cannot be cut; the message has the reason.
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
    """Return, for each channel of a layer, the index of the group's channel that it follows.

    A channel of a layer follows a channel of the group if it is removed together with it.

    Args:
        length: number of channels of the layer.
        channels: indices of the layer's channels that follow channels of the group.
        roots: for each element of ``channels``, the index of the group's channel that it follows.

    Returns:
        Tensor: int64, shape [length]; -1 for a channel that follows none.

    Raises:
        ValueError: if ``channels`` has an index of ``length`` or more.
    """
    if max(channels) >= length:
        raise ValueError(f"a reshape takes them to channel {max(channels)} of {length}")
    follows = torch.full((length,), -1)
    follows[list(channels)] = torch.tensor(list(roots))
    return follows


def channel_group(name: str, channels: int, axes: Sequence[Axis]) -> Group:
    """Return a Group with one unit for each set of channels that can only be removed together.

    Args:
        name: name of the group.
        channels: number of channels in the group.
        axes: every parameter dimension that gets shorter when these channels are removed.

    Raises:
        ValueError: if a dimension does not have the same number of entries for each unit, or if a
            grouped convolution reads channels of several groups.
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
    """Return the index of the unit that each channel belongs to; int64, shape [channels].

    A grouped convolution puts the channels at the same position of all its blocks into one unit.
    The units are in the order of their first channels.

    Args:
        channels: number of channels in the group.
        axes: every parameter dimension that gets shorter when these channels are removed.

    Raises:
        ValueError: if a grouped convolution reads channels of several groups.
    """
    first = list(range(channels))  # a lower or equal channel of the same set, up to its first one

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
