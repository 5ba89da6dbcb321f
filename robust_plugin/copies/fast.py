"""A plain copy of a network that computes the same faster: masks applied, BatchNorm folded."""

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

# Two ways to compute the same logits differ by rounding; more than this is another network.
_RELATIVE = 1e-4
# Points whose gradients are compared, and the share of the inputs' range by which they are moved:
# equal values in one pooling window are a tie, which rounding breaks in any way.
_POINTS, _MOVED = 32, 0.01
# Input channels of a convolution from which on channels_last was faster (CPU, batches of 16 to 78).
_WIDE = 64


def fast_copy(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy in evaluation mode for forward and input-gradient passes.

    Masks become zeros in plain weights, a BatchNorm behind a convolution is folded into it, small
    convolutions take shorter ways, and wide ones run channels_last. Where the network cannot be
    traced, or calls a ``torch.autograd.Function``, or where its copy does not give the same logits
    on ``x`` to 1e-4 of their range and the same input gradients, the copy has only the masks
    applied. A network that cannot be copied is returned itself.

    Args:
        model: any network; it is left as it is.
        x: inputs to compare on, shape [B, ...].

    Raises:
        ValueError: for a network with masks that cannot be copied.
    """
    masked = next(masked_weights(model), None) is not None
    try:
        plain = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # a forward may keep whatever cannot be copied
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
        _shorten(folded, x[:1])
        if _is_wide(folded):
            folded = folded.to(memory_format=torch.channels_last)
        with exact(x):
            same = _same_logits(plain, folded, x) and same_gradients(plain, folded, (_moved(x),))
    except Exception:  # tracing fails in as many ways as there are networks
        return plain
    return folded if same else plain


def _same_logits(plain: nn.Module, folded: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        expected, found = plain(x), folded(x)
    return bool((expected - found).abs().max() <= _RELATIVE * expected.abs().max())


def _moved(x: Tensor) -> Tensor:
    """Return points beside the first ones, within the range of all values."""
    generator = torch.Generator().manual_seed(0)
    low, high = x.aminmax()
    noise = 2 * torch.rand(x[:_POINTS].shape, generator=generator).to(x) - 1
    return (x[:_POINTS] + _MOVED * (high - low) * noise).clamp(low, high)


def _is_wide(model: nn.Module) -> bool:
    """Whether channels_last pays: not with few channels, where the transposing costs more."""
    sizes = Counter[bool]()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            sizes[layer.in_channels >= _WIDE] += layer.weight.numel()
    return sizes[True] > sizes[False]


def _folded(model: nn.Module) -> fx.GraphModule:
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


def _shorten(traced: fx.GraphModule, x: Tensor) -> None:
    """Replace the convolutions that have a shorter way on the maps that they see."""
    for name, maps in maps_seen(traced, x).items():
        traced.add_submodule(name, cheaper(cast(nn.Conv2d, traced.get_submodule(name)), maps))
    traced.recompile()
