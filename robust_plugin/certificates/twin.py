"""A plain twin of a network, for libraries that must not see masks, and gradients back from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.certificates.batch_norm import statistics_of
from robust_plugin.certificates.rules import NORMS, kind_of, scale_and_shift
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.detach import finalize


class Twin:
    """A copy with leaf weights and no parametrizations, which follows a live network.

    Args:
        model: bare, with or without a pruner attached; it is left as it is.

    Attributes:
        network: the copy, in evaluation mode, without Dropout, each BatchNorm with a weight and a
            bias.
    """

    def __init__(self, model: nn.Module) -> None:
        self.network = copy.deepcopy(model).eval()
        # A forward of its own that somebody hung on the instance, such as accelerate's autocast:
        # the network is what its class computes, to torch.fx and so to interval bounds too.
        vars(self.network).pop("forward", None)
        if next(masked_weights(self.network), None) is not None:
            finalize(self.network)
        for name, layer in list(self.network.named_modules()):
            if parametrize.is_parametrized(layer):
                _make_plain(layer)
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                parent, _, key = name.rpartition(".")
                setattr(self.network.get_submodule(parent), key, nn.Identity())
            elif (
                kind_of(layer) in NORMS and layer.weight is None and layer.running_mean is not None
            ):
                # For what a batch's statistics scale and shift by.
                ones = torch.ones_like(layer.running_mean)
                layer.weight, layer.bias = nn.Parameter(ones), nn.Parameter(torch.zeros_like(ones))
        self.network.requires_grad_(True)

    def following(self, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """Return what ``compute`` makes of the twin, with a graph to the live network's weights.

        Weights and buffers are read anew at each call: statistics of a BatchNorm go on moving.
        One that uses a clean batch's statistics (``clean_pass``) has their scale and shift as its
        weight and bias, with their graph, and running statistics of no effect.
        The gradient of a masked weight is that of the effective weight, w m; scores and rates
        follow by their straight-through formulas. ``requires_grad`` and ``.grad`` of the live
        network are not touched.

        Args:
            model: the network the twin was made of, its weights moved meanwhile.
            compute: a function of the twin's weights, run once.

        Raises:
            ValueError: for a BatchNorm that uses a clean batch's statistics and is called again.
        """
        leaves = dict(self.network.named_parameters())
        given = dict(self._of_norms(model))
        values = {n: given[n] if n in given else _live(model, n) for n, _ in self._tensors()}
        effective = {name: values[name] for name in leaves}
        with torch.no_grad():
            for name, own in self._tensors():
                value = values[name]
                # Any write, even of the same, forbids the graphs before it their backward pass.
                if not torch.equal(own, value):
                    own.copy_(value)
        if not torch.is_grad_enabled() or not any(w.requires_grad for w in effective.values()):
            with torch.no_grad():
                return compute()
        pulled: Tensor = _PullBack.apply(compute, tuple(leaves.values()), *effective.values())
        return pulled

    def _of_norms(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Tensors of BatchNorms that are not those of the live network, by their names."""
        for name, own in self.network.named_modules():
            if kind_of(own) not in NORMS:
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
    """Give a layer its parametrized weights as leaves, which the library differentiates by.

    The parametrization itself stays in the live network, whose autograd knows its backward pass.
    """
    names = list(cast(nn.ModuleDict, layer.parametrizations))
    weights = {name: getattr(layer, name).detach().clone() for name in names}
    # Not remove_parametrizations, which takes the property from the live layer's class too.
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name, weight in weights.items():
        layer._parameters[name] = nn.Parameter(weight)


def _live(model: nn.Module, name: str) -> Tensor:
    """Return a tensor of the network by its dense name: a masked weight as w m, with its graph."""
    prefix, _, key = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(prefix), key)
    return found


class _PullBack(torch.autograd.Function):
    """The value of a graph over the twin's leaves, its gradient handed to the effective weights."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Tensor], leaves: tuple[Tensor, ...], *effective: Tensor
    ) -> Tensor:
        """Return compute(), and keep its graph."""
        with torch.enable_grad():
            ctx.out = compute()
        ctx.leaves = leaves
        value: Tensor = ctx.out.detach()
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to each leaf, for the weight that it stands for."""
        grads = torch.autograd.grad(ctx.out, ctx.leaves, grad, retain_graph=True, allow_unused=True)
        return (None, None, *grads)
