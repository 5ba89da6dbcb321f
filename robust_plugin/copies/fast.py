"""A copy of a network that computes the same outputs faster: masks applied, BatchNorm folded."""

from __future__ import annotations

import copy
from collections import Counter
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robust_plugin.copies.agreement import same_gradients
from robust_plugin.copies.convolutions import cheaper, maps_seen
from robust_plugin.copies.tracing import refusing_own_backward
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.detach import finalize
from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.tolerances import FOLDED_OUTPUTS

# How many points gradients are compared at, and by which share of the range of the inputs these
# points are moved first. Equal values in one pooling window are a tie, and rounding decides which
# of them gets the gradient; moving the points breaks the ties.
_POINTS, _MOVED = 32, 0.01
# From this number of input channels on, channels_last made a convolution faster (CPU, batches of
# 16 to 78).
_WIDE = 64


def fast_copy(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a faster copy in evaluation mode, for forward passes and gradients by the inputs.

    In the copy, masks become zeros in plain weights, a BatchNorm after a convolution is folded into
    the convolution, convolutions on small maps or of few channels are replaced by faster layers,
    and wide networks run in channels_last. Only the masks are applied if the network cannot be
    traced or calls a ``torch.autograd.Function``, or if the faster copy does not give the same
    logits on ``x`` (to 1e-4 of their range) and the same gradients by the inputs. If a network
    without masks cannot be copied, the network itself is returned.

    Args:
        model: any network; it is not changed.
        x: inputs on which copy and network are compared, shape [B, ...].

    Raises:
        ValueError: if the network has masks and cannot be copied.
    """
    masked = next(masked_weights(model), None) is not None
    try:
        plain = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # a forward pass may store things that cannot be copied
        if masked:
            raise ValueError(
                f"{type(model).__name__} cannot be copied ({error}); finalize its pruner first."
            ) from error
        return model
    if masked:
        finalize(plain)
        plain.requires_grad_(False)
    try:
        folded = _folded(plain)
        _replace_convolutions(folded, x[:1])
        if _is_wide(folded):
            folded = folded.to(memory_format=torch.channels_last)
        with exact(x):
            same = _same_logits(plain, folded, x) and same_gradients(plain, folded, (_moved(x),))
    except Exception:  # tracing a network can raise any exception
        return plain
    return folded if same else plain


def _same_logits(plain: nn.Module, folded: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        expected, found = plain(x), folded(x)
    return bool((expected - found).abs().max() <= FOLDED_OUTPUTS * expected.abs().max())


def _moved(x: Tensor) -> Tensor:
    """Return the first 32 points, moved by noise of up to 1 % of the range of x's values."""
    generator = torch.Generator().manual_seed(0)
    low, high = x.aminmax()
    noise = 2 * torch.rand(x[:_POINTS].shape, generator=generator).to(x) - 1
    return (x[:_POINTS] + _MOVED * (high - low) * noise).clamp(low, high)


def _is_wide(model: nn.Module) -> bool:
    """Return whether most convolution weights are in layers for which channels_last is faster.

    With few channels, changing the memory layout costs more than it saves.
    """
    sizes = Counter[bool]()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            sizes[layer.in_channels >= _WIDE] += layer.weight.numel()
    return sizes[True] > sizes[False]


def _folded(model: nn.Module) -> fx.GraphModule:
    """Return a trace of the model in which each BatchNorm is folded into the convolution before it.

    Both stay as they are if one of them is called more than once, or if another operation reads the
    convolution's output too.
    """
    with refusing_own_backward():
        traced = fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in traced.graph.nodes:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or "call_module" not in (node.op, before.op):
            continue
        conv, norm = modules.get(str(before.target)), modules.get(str(node.target))
        if (
            isinstance(conv, nn.Conv1d | nn.Conv2d)
            and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            and norm.running_mean is not None
            and len(before.users) == calls[before.target] == calls[node.target] == 1
        ):
            traced.add_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _replace_convolutions(traced: fx.GraphModule, x: Tensor) -> None:
    """Replace each convolution of a trace, in place, by a layer that is faster, if there is one.

    Args:
        traced: the trace.
        x: one input of the network, shape [1, ...].
    """
    for name, maps in maps_seen(traced, x).items():
        traced.add_submodule(name, cheaper(cast(nn.Conv2d, traced.get_submodule(name)), maps))
    traced.recompile()
