"""A copy of a network without masks, whose gradients flow back to the original network.

auto-LiRPA computes wrong bounds for layers with a mask. So it works on this copy, and the gradient
with respect to the copy's weights is passed on to the original's weights, mask scores and learned
layer densities.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.certificates.batch_norm import statistics_of
from robust_plugin.certificates.rules import NORMS, scale_and_shift
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.detach import finalize
from robust_plugin.masks.masked_layer import plain_class, present_weight


class PlainCopy:
    """A copy of a network without masks; each call of ``following`` updates it from the original.

    Args:
        model: network without wrappers such as DDP, with or without a pruner attached. It is not
            changed.

    Attributes:
        network: the copy, in evaluation mode. Its weights are ordinary parameters without
            parametrizations, its Dropout layers are replaced by Identity, and each BatchNorm with
            running statistics has a weight and a bias.
    """

    def __init__(self, model: nn.Module) -> None:
        self.network = copy.deepcopy(model).eval()
        # A forward set on the instance, such as accelerate's autocast, is dropped: the network is
        # what its class computes, as it is for torch.fx and so for interval bounds.
        vars(self.network).pop("forward", None)
        if next(masked_weights(self.network), None) is not None:
            finalize(self.network)
        for name, layer in list(self.network.named_modules()):
            if parametrize.is_parametrized(layer):  # by others; masks are gone
                _make_plain(layer)
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                parent, _, key = name.rpartition(".")
                setattr(self.network.get_submodule(parent), key, nn.Identity())
            elif (
                plain_class(layer) in NORMS
                and layer.weight is None
                and layer.running_mean is not None
            ):
                # They hold the scale and shift that the statistics of a clean batch give.
                ones = torch.ones_like(layer.running_mean)
                layer.weight, layer.bias = nn.Parameter(ones), nn.Parameter(torch.zeros_like(ones))
        self.network.requires_grad_(True)

    def following(self, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """Update the copy from the original, and return ``compute()`` with a graph to the original.

        The copy gets the original's present weights and running statistics. Inside ``clean_pass``,
        a BatchNorm in training mode normalises by the statistics of the clean batch: the copy's
        weight and bias are set to the scale and shift that they give, with their graph, and its
        running statistics to values without effect. The gradient of a masked weight is that of the
        effective weight w m, weight times mask; mask scores and learned layer densities get theirs
        by their straight-through formulas. ``requires_grad`` and ``.grad`` of the original are not
        changed.

        Args:
            model: the network that the copy was made of.
            compute: a function that computes a tensor from the copy's weights; it is called once.

        Raises:
            ValueError: for a BatchNorm in training mode that the network called more than once in
                ``clean_pass``.
        """
        leaves = dict(self.network.named_parameters())
        given = dict(self._norm_tensors(model))
        values = {
            n: given[n] if n in given else _effective_tensor(model, n) for n, _ in self._tensors()
        }
        effective = {name: values[name] for name in leaves}
        with torch.no_grad():
            for name, own in self._tensors():
                value = values[name]
                # Any write, even of equal values, makes autograd refuse the backward pass of
                # earlier graphs.
                if not torch.equal(own, value):
                    own.copy_(value)
        if not torch.is_grad_enabled() or not any(w.requires_grad for w in effective.values()):
            with torch.no_grad():
                return compute()
        pulled: Tensor = _PullBack.apply(compute, tuple(leaves.values()), *effective.values())
        return pulled

    def _norm_tensors(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the name in the copy and the value of each BatchNorm tensor that ``model`` lacks.

        These are weights and biases where ``model`` has none, and all tensors of BatchNorms that
        use the statistics of the clean batch (see ``following``).

        Args:
            model: the network that the copy was made of.
        """
        for name, own in self.network.named_modules():
            if plain_class(own) not in NORMS:
                continue
            norm: Any = model.get_submodule(name)
            statistics = statistics_of(name, norm)
            if statistics is not None:
                scale, shift = scale_and_shift(name, norm, statistics)
                mean, variance = torch.zeros_like(shift), torch.full_like(scale, 1 - norm.eps)
                yield from ((f"{name}.running_mean", mean), (f"{name}.running_var", variance))
            elif norm.weight is None:
                scale, shift = torch.ones_like(norm.running_var), torch.zeros_like(norm.running_var)
            else:
                continue
            yield from ((f"{name}.weight", scale), (f"{name}.bias", shift))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.network.named_parameters()
        yield from self.network.named_buffers()


def _make_plain(layer: nn.Module) -> None:
    """Replace the parametrized weights of a layer by ordinary parameters with the same values.

    auto-LiRPA can differentiate by these. The layer belongs to the copy; the original network keeps
    its parametrizations, and autograd its backward pass through them.
    """
    names = list(cast(nn.ModuleDict, layer.parametrizations))
    weights = {name: getattr(layer, name).detach().clone() for name in names}
    # Not by remove_parametrizations, which would delete the property from the original's class too.
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name, weight in weights.items():
        layer._parameters[name] = nn.Parameter(weight)


def _effective_tensor(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer of the network, with its graph; a masked weight as w m.

    Args:
        model: the network.
        name: qualified name of the tensor, such as ``"conv1.weight"``.
    """
    prefix, _, key = name.rpartition(".")
    return present_weight(model.get_submodule(prefix), key)


class _PullBack(torch.autograd.Function):
    """Compute a tensor from the copy's weights; its gradients go to the original's weights."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Tensor], leaves: tuple[Tensor, ...], *effective: Tensor
    ) -> Tensor:
        """Return compute(), which uses the copy's weights ``leaves``, and keep its graph.

        The weights in ``effective`` are the original's, in the same order, masked ones as w m.
        """
        with torch.enable_grad():
            ctx.out = compute()
        ctx.leaves = leaves
        value: Tensor = ctx.out.detach()
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient by each of the copy's weights as that of the original's weight."""
        grads = torch.autograd.grad(ctx.out, ctx.leaves, grad, retain_graph=True, allow_unused=True)
        return (None, None, *grads)
