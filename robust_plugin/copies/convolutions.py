"""Layers that compute what a convolution computes, faster on a CPU.

They are faster where attacks differentiate by the input: convolutions on small maps become a matrix
product, and convolutions with few input channels get a backward pass of matrix products and folds.
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
    """Return a faster layer that computes the same as a convolution, or the convolution itself.

    The faster layer works for inputs of x's shape, with any batch size. Its parameters get no
    gradients.

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
    """Run a network, and return the inputs of its Conv2d layers by the layer's name.

    Layers that are not called exactly once are left out.

    Args:
        network: the network.
        x: inputs of the network, shape [B, ...].
    """
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
    """Return a layer that computes a convolution as one matrix product, or None for a large matrix.

    The layer works for inputs of x's shape, with any batch size. The matrix must have at most 2^18
    entries, and at most four times as many as the convolution has multiply-adds.

    Args:
        layer: a convolution on any device.
        x: one input of the convolution, shape [1, C, H, W].
    """
    with torch.no_grad():
        out = layer(x)
    entries, used = x.numel() * out.numel(), layer.weight[0].numel() * out.numel()
    return Unrolled(layer, x, out) if entries <= min(_MORE * used, _ENTRIES) else None


def with_matrices(network: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a network in which convolutions on small maps are matrix products.

    Methods that propagate bounds back from every neuron separately run each convolution on one map
    per neuron; on small maps, a matrix product is faster.

    Args:
        network: the network. The copy shares its weights, but not the matrices: when the weights
            change, ``Unrolled.follow`` computes the matrices again.
        x: one input of the network, shape [1, ...].

    Returns:
        tuple: the copy, and the input of each replaced convolution by the layer's name.
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
    """A convolution on maps of one size, computed as one matrix: z = W x + b on flattened maps.

    Args:
        layer: the convolution.
        x: one input of the convolution, shape [1, C, H, W].
        out: the convolution's output for x.
    """

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
        """Set the matrix W and the bias b to what a convolution computes now.

        Args:
            layer: the convolution.
            x: an input of the size that the layer was made for, shape [1, C, H, W]; its values do
                not matter.
        """
        units = torch.eye(x.numel(), dtype=x.dtype, device=x.device).view(-1, *x.shape[1:])
        bias = layer(torch.zeros_like(x))
        self.weight.copy_((layer(units) - bias).flatten(1).t())
        self.bias.copy_(bias.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution's output for inputs of shape [B, C, H, W]."""
        return F.linear(x.flatten(1), self.weight, self.bias).view(-1, *self.out)


class _Narrow(nn.Module):
    """A convolution whose gradient by the input is computed as F.fold(W^T dL/dz).

    Here L is the loss and z the convolution's output. The parameters get no gradients.

    Args:
        layer: a convolution with one group and padding by zeros.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.settings = layer.stride, layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution's output for inputs of shape [B, C, H, W]."""
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
