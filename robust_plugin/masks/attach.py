"""Attaching masks to layers, and finding the masks of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.groups import Group
from robust_plugin.masks.masked_layer import (
    MASKS,
    is_masked,
    masked_class,
    plain_class,
    present_weight,
    stored_weight,
    write_zeros_of,
)
from robust_plugin.masks.masked_weight import MaskedWeight


def attach(layer: nn.Module, masked: MaskedWeight) -> None:
    """Mask a parameter of a layer.

    The Parameter object and its name stay the same, so an optimizer that holds it still trains it.
    """
    if not is_masked(layer):
        layer.add_module(MASKS, nn.ModuleList())
    masks = cast(nn.ModuleList, layer._modules[MASKS])
    masks.append(masked.train(layer.training))
    names = sorted({cast(MaskedWeight, each).parameter for each in masks})
    layer.__class__ = masked_class(plain_class(layer), tuple(names))


def attach_groups(groups: Sequence[Group], masks: Sequence[GroupMask]) -> None:
    """Attach ``masks[i]`` to all parameters that are members of ``groups[i]``."""
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            masked = MaskedWeight(mask, member.parameter, dim=member.dim, index=member.index)
            attach(member.layer, masked)


def masked_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, MaskedWeight]]:
    """Yield (layer name, layer, parameter name, MaskedWeight) for every mask of a model.

    A layer with two names in the model is yielded under both. A weight is yielded twice if two
    groups mask its input channels, as they do behind a concatenation.
    """
    for name, layer in model.named_modules(remove_duplicate=False):
        if is_masked(layer):
            for masked in cast(Sequence[MaskedWeight], layer._modules[MASKS]):
                yield name, layer, masked.parameter, masked


def write_zeros(model: nn.Module) -> None:
    """Write the zeros of fixed masks into the weights of a model."""
    for layer in model.modules():
        if is_masked(layer):
            write_zeros_of(layer)


def refresh_masks(model: nn.Module) -> None:
    """Choose learned masks anew whose scores were written since, before any forward pass.

    A compiled forward pass does not notice that scores were written.
    """
    for _, _, _, masked in masked_weights(model):
        masked.group.refresh()


def check_layers(
    model: nn.Module, places: Sequence[tuple[str, nn.Module, str, MaskedWeight]]
) -> None:
    """Check that masks are where they were attached, and that no write to a weight was lost.

    Args:
        model: the network.
        places: what ``masked_weights`` yielded when the masks were attached.

    Raises:
        ValueError: naming a layer that was replaced, or a weight that was written in vain.
    """
    present = set(model.modules())
    for name, layer, parameter, masked in places:
        if layer not in present:
            raise ValueError(
                f"the layer {name!r} that the pruner masks is no part of the model any more; "
                "replace layers before the pruner is attached, or after finalize."
            )
        stored_weight(layer, parameter)
        if masked.was_written():
            raise ValueError(
                f"something was written to {name}.{parameter} while its mask is learned: that "
                "is a product of weight and mask, and the weight did not change. Initialise or "
                "load weights before the pruner is attached, or by model.load_state_dict."
            )


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
            effective: list[Tensor] = [
                present_weight(layer, parameter).detach() for _, layer, parameter, _ in free
            ]
        for (_, _, _, masked), value in zip(free, effective, strict=True):
            masked.constant = value
        yield
    finally:
        for _, _, _, masked in free:
            masked.constant = None
