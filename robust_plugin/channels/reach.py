"""Warn of layers that the trace of a network does not contain, so that they stay dense."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from functools import partial

from torch import Tensor, nn

from robust_plugin.budget.costs import multiply_adds
from robust_plugin.copies.agreement import outputs, trials
from robust_plugin.masks.prunable import prunable_members
from robust_plugin.runtime.calls import user_level


def warn_of_unseen(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    seen: Collection[str],
    ignored: Collection[nn.Module],
) -> None:
    """Warn of prunable layers that the trace of a network does not contain; they stay dense.

    Args:
        model: a network without masks; it is not changed.
        inputs: inputs of one forward pass.
        seen: names of the layers in the trace.
        ignored: layers to leave out of the warning, because the user has named them.
    """
    known = set(ignored)
    for layer in model.modules():
        # It reads the weight of its layer out_proj without calling the layer.
        if isinstance(layer, nn.MultiheadAttention):
            known.update(layer.modules())
    unseen = {
        member.layer_name
        for member in prunable_members(model)
        if member.layer_name not in seen and member.layer not in known
    }
    if not unseen:
        return
    running = _running(model, inputs)
    outside, never = sorted(unseen & running), sorted(unseen - running)
    if outside:
        warnings.warn(
            f"{_listed(outside)} run outside the graph that is traced, in training mode only or "
            "without gradients, and stay dense, as do the channels that they read. Name them in "
            "ignored to turn this warning off.",
            stacklevel=user_level(),
        )
    if never:
        warnings.warn(
            f"{_listed(never)} never ran on example_inputs, in evaluation or in training mode, and "
            "stay dense. If they read channels that are removed, they fail when they run: give "
            "example_inputs that reach them, or name in ignored the layers that make what they "
            "read. Name them there too to turn this warning off.",
            stacklevel=user_level(),
        )


def _running(model: nn.Module, inputs: tuple[Tensor, ...]) -> set[str]:
    """Return the names of all layers that a forward pass uses, in evaluation or in training mode.

    Args:
        model: a network without masks; it is not changed.
        inputs: inputs of one forward pass; training mode is tried on random inputs of this kind.
    """
    trial = copy.deepcopy(model)
    found = {name for name, _ in multiply_adds(trial, inputs)}
    for name, layer in trial.named_modules():
        layer.register_forward_pre_hook(partial(_note, found, name))
    for each in trials(model, inputs):
        if each.training:
            outputs(trial, each)
    return found


def _note(found: set[str], name: str, *_: object) -> None:
    found.add(name)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} others" if len(names) > 4 else ""
    return f"layers {', '.join(names[:4])}{more}"
