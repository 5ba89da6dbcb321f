"""Layers that compute what a convolution computes, faster on a CPU.

They are faster where attacks differentiate by the input: a matrix product for convolutions on small
maps, and a backward pass of products and folds for convolutions with few input channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Up to this number of input channels, oneDNN's backward pass by the input takes four to ten times
# as long as its forward pass (kernels 3 and 4, strides 1 and 2); a product and a fold take half to
# a quarter of that.
_NARROW = 4
# On a map of a few pixels, most entries of a convolution's full matrix are not zero, and a matrix
# product has less overhead. The matrix is used if it has at most this many times the convolution's
# multiply-adds, and at most this many entries.
_MORE = 4
_ENTRIES = 2**18


def cheaper(layer: nn.Conv2d, x: Tensor) -> nn.Module:
    """Return a faster layer with the outputs of ``layer`` on inputs of x's shape, or ``layer``.

    The parameters of a faster layer get no gradients.

    Args:
        layer: a convolution on any device.
        x: one input of the convolution, shape [1, C, H, W].
    """
    if x.dim() != 4 or x.device.type != "cpu":
        return layer
    if (matrix := unrolled(layer, x)) is not None:
        return matrix
    plain = layer.groups == 1 and layer.padding_mode == "zeros"
    if plain and layer.in_channels <= _NARROW and not isinstance(layer.padding, str):
        return _Narrow(layer)
    return layer


def maps_seen(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the input of each Conv2d that a forward pass calls exactly once, by layer name."""
    seen: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen.setdefault(name, []).append(args[0])

    handles = [
        layer.register_forward_pre_hook(record(name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: maps[0] for name, maps in seen.items() if len(maps) == 1}


def unrolled(layer: nn.Conv2d, x: Tensor) -> Unrolled | None:
    """Return a convolution on maps of x's size as one matrix, or None if the matrix is too large.

    Args:
        layer: a convolution on any device.
        x: one input of the convolution, shape [1, C, H, W].
    """
    with torch.no_grad():
        out = layer(x)
    entries, used = x.numel() * out.numel(), layer.weight[0].numel() * out.numel()
    return Unrolled(layer, x, out) if entries <= min(_MORE * used, _ENTRIES) else None


def with_matrices(network: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy in which convolutions on small maps are matrices, and their inputs by name.

    This is for bounds, which are propagated from every neuron separately; a convolution then runs
    on one small map per neuron.

    Args:
        network: the network, whose weights the copy shares. Its layers may go on learning;
            ``Unrolled.follow`` copies their weights into the matrices again.
        x: one input of the network, shape [1, ...].
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    short, found = copy.deepcopy(network, shared), {}
    for name, maps in maps_seen(network, x).items():
        matrix = unrolled(cast(nn.Conv2d, network.get_submodule(name)), maps)
        if matrix is not None:
            parent, _, key = name.rpartition(".")
            setattr(short.get_submodule(parent), key, matrix)
            found[name] = maps
    return short, found


class Unrolled(nn.Module):
    """A convolution on maps of one size, computed as one matrix: z = W x + b on flattened maps."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d, x: Tensor, out: Tensor) -> None:
        super().__init__()
        self.out = out.shape[1:]
        self.register_buffer("weight", x.new_empty(out.numel(), x.numel()))
        self.register_buffer("bias", x.new_empty(out.numel()))
        self.follow(layer, x)

    @torch.no_grad()
    def follow(self, layer: nn.Conv2d, x: Tensor) -> None:
        """Set matrix and bias to what ``layer`` computes on maps of x's shape, [1, C, H, W]."""
        units = torch.eye(x.numel(), dtype=x.dtype, device=x.device).view(-1, *x.shape[1:])
        bias = layer(torch.zeros_like(x))
        self.weight.copy_((layer(units) - bias).flatten(1).t())
        self.bias.copy_(bias.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution returns."""
        return F.linear(x.flatten(1), self.weight, self.bias).view(-1, *self.out)


class _Narrow(nn.Module):
    """A convolution whose gradient by the input is computed as F.fold(W^T dL/dz)."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.settings = layer.stride, layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution returns."""
        result: Tensor = _NarrowConvolution.apply(x, self.weight, self.bias, self.settings)
        return result


class _NarrowConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, Any, Any]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.settings = x.shape[2:], settings
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation = ctx.settings
        columns = weight.flatten(1).t() @ grad.flatten(2)
        by_input = F.fold(columns, ctx.size, weight.shape[2:], dilation, padding, stride)
        return by_input, None, None, None
