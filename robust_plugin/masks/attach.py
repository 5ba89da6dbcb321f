"""Masks on layers: how they attach, and what a layer then computes with.

A *group* is what shares one score tensor and one density (its rate): a weight tensor, or a set of
layers whose input channels are removed together. Its ``GroupMask`` is a submodule of
``layer.parametrizations`` in every layer that it masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.masks.groups import Group
from robust_plugin.masks.select import Pattern, StraightThrough, nm_mask, topk_mask
from robust_plugin.runtime.calls import user_level


class GroupMask(nn.Module):
    """Scores, learned density and mask of the weights or channels of one group.

    The mask is a buffer that the pruner computes after each optimizer step. A forward pass only
    reads it, so a training step with ten attack steps computes top-k once.

    Args:
        scores: initial scores, one per weight or per channel.
        kept: number of weights or channels to keep.
        k_min: least density, for a learned density.
        rate: initial logit r of the density; None if the density is not learned.
        pattern: n:m pattern of the mask; None for an unstructured mask.

    Attributes:
        scores: one score per weight or per channel, float32 for every dtype of the model.
        rate: logit r of the density k = k_min + (1 - k_min) sigmoid(r); None if the density is not
            learned.
        kept: number of ones in the mask, an integer tensor. The mask follows from ``scores`` and
            ``kept``.
        mask: the mask, bool, same shape as the scores. It is not in the state_dict: loading a state
            computes it again.
        waits: True while a pruner that learns is attached and its prune phase has not begun.
        unfollowed: True while scores or density are to be learned but ``Pruner.follow`` has not
            been called, so that no optimizer step changes the mask.
    """

    kept: Tensor
    mask: Tensor

    def __init__(
        self,
        scores: Tensor,
        kept: int,
        *,
        k_min: float = 0.0,
        rate: float | None = None,
        pattern: Pattern | None = None,
    ) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores.detach().float().clone(), requires_grad=False)
        self.k_min = k_min
        self.pattern = pattern
        self.waits = False
        self.unfollowed = False
        device = scores.device
        self.rate: nn.Parameter | None = None
        if rate is not None:
            self.rate = nn.Parameter(torch.tensor(rate, device=device), requires_grad=False)
        self.register_buffer("kept", torch.tensor(kept, device=device))
        mask = torch.empty_like(self.scores, dtype=torch.bool)
        self.register_buffer("mask", mask, persistent=False)
        self.register_load_state_dict_post_hook(_choose_after_load)  # type: ignore[no-untyped-call]
        self.choose()

    def choose(self, kept: int | None = None) -> None:
        """Compute the mask anew: the ``kept`` largest ``|scores|``, or the n largest of every m.

        Args:
            kept: number of weights or channels to keep from now on; None keeps as many as before.

        Raises:
            ValueError: if this number does not fit the n:m pattern, or a score is NaN.
        """
        count = int(self.kept) if kept is None else kept
        if kept is not None:
            self.kept.fill_(kept)
        with torch.no_grad():
            if self.pattern is not None:
                n = self.pattern.kept_of_m(count, self.scores.numel())
                chosen = nm_mask(self.scores, n, self.pattern.m)
            else:
                chosen = topk_mask(self.scores, count)
            self.mask.copy_(chosen)

    def density(self) -> Tensor:
        """Return the density k = k_min + (1 - k_min) sigmoid(r), HARP section 3.2.

        It is a scalar, differentiable with respect to the logit r. If the density is not learned,
        it is the share of ones in the mask.
        """
        if self.rate is None:
            return self.kept / self.scores.numel()
        return self.k_min + (1 - self.k_min) * torch.sigmoid(self.rate)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return the mask; gradients pass to the scores and the rate logit if these are learned.

        Args:
            dtype: dtype of the returned mask if gradients pass through it; else the mask is bool.

        Raises:
            ValueError: if scores or rate are to be learned and ``Pruner.follow`` was not called.
        """
        learned = self.scores.requires_grad or (self.rate is not None and self.rate.requires_grad)
        if not (learned and torch.is_grad_enabled()):
            return self.mask
        if self.unfollowed:
            raise ValueError(
                "the prune phase learns scores but no optimizer is followed, so the mask would "
                "never move; call pruner.follow(optimizer, ...) before the first forward pass."
            )
        through: Tensor = StraightThrough.apply(self.mask, self.scores, self.density(), dtype)
        return through

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupMask:
        # Scores and rate keep their float32 values through a change of dtype: model.half() must not
        # round them.
        exact = {parameter: parameter.detach() for parameter in self.parameters(recurse=False)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter, before in zip(self.parameters(recurse=False), exact.values(), strict=True):
            if parameter.dtype != torch.float32:
                parameter.data = before.to(parameter.device)
        return self


def _choose_after_load(group: GroupMask, _: Any) -> None:
    """Compute the mask from the scores and the number of ones that were just loaded."""
    group.waits = False  # the scores may have been learned elsewhere
    group.choose()


class MaskedWeight(nn.Module):
    """Parametrization of a layer's weight w as w * m with a mask m, while a pruner is attached.

    Args:
        group: scores and mask of the group that the weight belongs to.
        dim: dimension of the weight along which the mask selects channels; None if the mask has the
            shape of the weight.
        index: for each position along ``dim``, the channel of the group that it belongs to, or -1
            where nothing is masked; None if position i belongs to channel i.
    """

    index: Tensor | None

    def __init__(
        self, group: GroupMask, *, dim: int | None = None, index: Tensor | None = None
    ) -> None:
        super().__init__()
        self.group = group
        self.dim = dim
        placed = None if index is None else index.to(group.mask.device)
        self.register_buffer("index", placed, persistent=False)
        # Inside of held_weights(): the effective weight as a constant; else None.
        self.constant: Tensor | None = None
        # Names of the layer's parameters in their order before the mask was attached.
        self.parameter_order: tuple[str, ...] = ()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight times the mask; inside ``held_weights``, the product computed there."""
        if self.constant is not None:
            return self.constant
        mask: Tensor = self.group(weight.dtype)
        if self.dim is not None:
            mask = mask.flatten()
            if self.index is not None:
                mask = torch.cat([mask, mask.new_ones(1)])[
                    self.index
                ]  # index -1 reads the appended 1
            mask = mask.view([-1 if d == self.dim else 1 for d in range(weight.dim())])
        product = weight * mask
        if self.group.waits and self.training and product.requires_grad:
            product.register_hook(self._warn_of_waiting)  # type: ignore[no-untyped-call]
        return product

    def _warn_of_waiting(self, _: Tensor) -> None:
        """Warn that the weight is trained before its mask is learned; called in backward passes."""
        self.group.waits = False  # once is enough
        warnings.warn(
            "the model is trained while its pruner is in phase 'attached', in which nothing is "
            "learned; call pruner.set_phase('prune') first, and build the optimizer from what it "
            "returns.",
            stacklevel=user_level(),
        )

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the weight to store when a value is assigned to the masked weight.

        It is the value itself, without the mask.
        """
        return weight


def masked_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, MaskedWeight]]:
    """Yield (layer name, layer, parameter name, MaskedWeight) for every mask of a model.

    A layer with two names in the model is yielded under both. A weight is yielded twice if two
    groups mask its input channels, as they do behind a concatenation.
    """
    for name, layer in model.named_modules(remove_duplicate=False):
        chains = layer.parametrizations if parametrize.is_parametrized(layer) else {}
        for parameter, chain in cast(nn.ModuleDict, chains).items():
            for masked in cast(nn.ModuleList, chain):
                if isinstance(masked, MaskedWeight):
                    yield name, layer, parameter, masked


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Context in which all forward passes use products w * m that are computed once, on entry.

    The products are constants: no gradient reaches weights, scores or rates. Attacks and evaluation
    use this, because they never differentiate with respect to these.

    Args:
        model: model with or without masks; outside of the context it computes as before.
    """
    free = [found for found in masked_weights(model) if found[3].constant is None]
    try:
        with torch.no_grad():
            effective = [getattr(layer, parameter) for _, layer, parameter, _ in free]
        for (_, _, _, masked), value in zip(free, effective, strict=True):
            masked.constant = value
        yield
    finally:
        for _, _, _, masked in free:
            masked.constant = None


def chain_of(layer: nn.Module, parameter: str) -> parametrize.ParametrizationList:
    """Return torch's list of the parametrizations of a masked parameter.

    Its attribute ``original`` is the weight without the mask.
    """
    chains = cast(nn.ModuleDict, layer.parametrizations)
    return cast(parametrize.ParametrizationList, chains[parameter])


def attach(layer: nn.Module, parameter: str, masked: MaskedWeight) -> None:
    """Register ``masked`` as parametrization of a layer's parameter.

    The Parameter object stays the same, so an optimizer that holds it still trains it.
    """
    masked.parameter_order = tuple(layer._parameters)
    parametrize.register_parametrization(layer, parameter, masked)


def attach_groups(groups: Sequence[Group], masks: Sequence[GroupMask]) -> None:
    """Attach ``masks[i]`` to all parameters that are members of ``groups[i]``."""
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            masked = MaskedWeight(mask, dim=member.dim, index=member.index)
            attach(member.layer, member.parameter, masked)
