"""How a mask attaches to a layer, and leaves it again.

A *group* is what shares one score tensor and one rate. For weights a group is one weight
tensor; for channels it is a set of layers whose input channels come and go together. Its
GroupMask hangs below ``layer.parametrizations`` of every layer it masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.masks.groups import Group
from robust_plugin.masks.select import Pattern, StraightThrough, nm_mask, topk_mask


class GroupMask(nn.Module):
    """Scores, rate and mask of one group.

    The mask is a buffer that somebody chooses after each optimizer step: a forward pass only
    reads it, so that ten attack steps cost one top-k.

    Attributes:
        scores: float32 whatever the model's dtype: one score a weight, or a channel.
        rate: the logit r of k = k_min + (1 - k_min) sigmoid(r), or None where not learned.
        kept: how many entries of the mask are one; with the scores it determines the mask.
        mask: bool, the shape of the scores; not saved, chosen again when a state is loaded.
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
        # True while scores or rates are to be learned and no optimizer moves the mask yet.
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
        """Set the mask to the ``kept`` largest |scores|, or to those of every m of a pattern.

        Raises:
            ValueError: if that many are not the pattern.
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
        """k = k_min + (1 - k_min) sigmoid(r), HARP section 3.2; a scalar that r learns through."""
        if self.rate is None:
            return self.kept / self.scores.numel()
        return self.k_min + (1 - self.k_min) * torch.sigmoid(self.rate)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return the mask, differentiable for whatever is learned.

        Raises:
            ValueError: if something is learned and no optimizer is followed.
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
        # model.half() must not round the scores: keep their values through a change of dtype.
        exact = {parameter: parameter.detach() for parameter in self.parameters(recurse=False)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter, before in zip(self.parameters(recurse=False), exact.values(), strict=True):
            if parameter.dtype != torch.float32:
                parameter.data = before.to(parameter.device)
        return self


def _choose_after_load(group: GroupMask, _: Any) -> None:
    group.choose()


class MaskedWeight(nn.Module):
    """The parametrization w -> w * m that a layer's weight carries while a pruner is attached.

    Args:
        group: the mask.
        dim: None where the mask has the shape of the weight; else the dimension of the weight
            that the mask's entries (channels) select.
        index: for ``dim``: which channel of the group each entry of that dimension belongs to,
            -1 for none, which the mask leaves alone; None for the identity.
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
        # The effective weight as a constant, while held_weights() lasts.
        self.held: Tensor | None = None
        # The layer's parameters in their order before the mask came.
        self.order: tuple[str, ...] = ()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight."""
        if self.held is not None:
            return self.held
        mask: Tensor = self.group(weight.dtype)
        if self.dim is not None:
            mask = mask.flatten()
            if self.index is not None:
                mask = torch.cat([mask, mask.new_ones(1)])[self.index]  # -1 reads the one
            mask = mask.view([-1 if d == self.dim else 1 for d in range(weight.dim())])
        return weight * mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to a masked weight sets the weight underneath."""
        return weight


def masked_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, MaskedWeight]]:
    """Yield (layer name, layer, parameter name, its MaskedWeight) of a model with a pruner.

    A layer that a model holds under two names comes twice, and so does a weight whose input
    channels belong to two groups, as behind a concatenation.
    """
    for name, layer in model.named_modules(remove_duplicate=False):
        chains = layer.parametrizations if parametrize.is_parametrized(layer) else {}
        for parameter, chain in cast(nn.ModuleDict, chains).items():
            for carrier in cast(nn.ModuleList, chain):
                if isinstance(carrier, MaskedWeight):
                    yield name, layer, parameter, carrier


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Multiply weights and masks once for all forward passes inside, as constants.

    For attacks and evaluation, which never differentiate by the weights.
    """
    free = [found for found in masked_weights(model) if found[3].held is None]
    try:
        with torch.no_grad():
            effective = [getattr(layer, parameter) for _, layer, parameter, _ in free]
        for (_, _, _, carrier), value in zip(free, effective, strict=True):
            carrier.held = value
        yield
    finally:
        for _, _, _, carrier in free:
            carrier.held = None


def chain_of(layer: nn.Module, parameter: str) -> parametrize.ParametrizationList:
    """Return torch's holder of a masked parameter; its ``original`` is the weight underneath."""
    chains = cast(nn.ModuleDict, layer.parametrizations)
    return cast(parametrize.ParametrizationList, chains[parameter])


def attach(layer: nn.Module, parameter: str, carrier: MaskedWeight) -> None:
    """Mask one parameter of a layer; the Parameter object stays the user's own."""
    carrier.order = tuple(layer._parameters)
    parametrize.register_parametrization(layer, parameter, carrier)


def attach_groups(groups: Sequence[Group], masks: Sequence[GroupMask]) -> None:
    """Mask every member of every group by its group's mask."""
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            carrier = MaskedWeight(mask, dim=member.dim, index=member.index)
            attach(member.layer, member.parameter, carrier)
