"""From a masked network back to a plain one, and states of masked networks without their masks.

Parameters of a masked network have the names of the network without masks. Its state_dict also has
the states of the masks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.mask_state import facts_of, mask_of
from robust_plugin.masks.masked_layer import (
    MASKS,
    is_masked,
    is_of_masks,
    plain_class,
    present_weight,
    stored_weight,
)
from robust_plugin.masks.masked_weight import MaskedWeight, placed
from robust_plugin.masks.select import most_kept
from robust_plugin.runtime.calls import explain_wrong_calls, user_level
from robust_plugin.runtime.values import check_model


@explain_wrong_calls
def finalize(model: nn.Module) -> None:
    """Turn every masked layer into a plain layer whose pruned weights are zero.

    Args:
        model: network that a pruner is attached to, or a copy of it (deepcopy, EMA). A copy is
            finalized with its own masks; ``Pruner.finalize(copy)`` uses the pruner's masks instead.

    Raises:
        ValueError: if no layer of the model is masked, or if a mask does not have the number of
            ones or the n:m pattern that it should have. The latter happens in averages of models
            (EMA) that average the masks too.
    """
    found = list(masked_weights(check_model(model)))
    if not found:
        raise ValueError(
            "finalize found no masked layer; is it this model a pruner is attached to?"
        )
    waits = {masked.group.waits for _, _, _, masked in found} - {""}
    if waits:
        # No error: a copy may be from before the first phase, on purpose.
        warnings.warn(_BEGUN_NOTHING[waits.pop()], stacklevel=user_level())
    for name, _, _, masked in found:
        masked.group.refresh()
        _check_mask(masked.group, name)
    with torch.no_grad():
        effective = [present_weight(layer, parameter) for _, layer, parameter, _ in found]
        for (_, layer, parameter, _), value in zip(found, effective, strict=True):
            stored_weight(layer, parameter).copy_(_without_negative_zeros(value))
    for _, layer, _, _ in found:
        _detach(layer)


# By the first phase of a pruner, the warning where it has not begun.
_BEGUN_NOTHING = {
    "prune": "the pruner of this model has learned nothing yet, so that its masks are those of the "
    "initial scores; run the phase 'prune' first, or take MagnitudePruner.",
    "shrink": "the density of this model has not begun to fall, so that its masks are those that "
    "the schedule begins with; run the phase 'shrink' first, or take schedule='at_once'.",
}


def _check_mask(group: GroupMask, name: str) -> None:
    """Raise a ValueError unless a mask has as many ones as it should, in its n:m pattern.

    Args:
        group: the mask to check.
        name: name of the masked layer, for the error message.
    """
    ones, kept = int(group.mask.sum()), group.kept
    if ones != kept:
        raise ValueError(
            f"the mask of {name} keeps {ones} entries instead of {kept}, as in a copy whose "
            "buffers were averaged; call pruner.finalize(copy), which gives it the masks."
        )
    if group.pattern is None:
        return
    m = group.pattern.m
    n, most = group.pattern.kept_of_m(kept, group.mask.numel()), most_kept(group.mask, m)
    if most != n:
        raise ValueError(
            f"the mask of {name} keeps up to {most} of {m} entries instead of {n}; call "
            "pruner.update_masks(), which chooses it anew from the scores."
        )


def _without_negative_zeros(weight: Tensor) -> Tensor:
    """Return the weight with 0.0 in place of -0.0."""
    # -1 times a mask's 0 is -0.0. Its bits differ from those of the 0.0 that files of non-zeros
    # leave out. Adding 0 changes nothing else.
    return weight + 0.0


def _detach(layer: nn.Module) -> None:
    """Remove the masks of a layer and give it back its class from before masking."""
    if not is_masked(layer):
        return
    masks = cast(nn.ModuleList, layer._modules.pop(MASKS))
    for masked in masks:
        cast(MaskedWeight, masked).release()
    layer.__class__ = plain_class(layer)


def lend_masks(source: nn.Module, copy: nn.Module) -> None:
    """Overwrite the masks of a copy of a network with the present masks of the network.

    Args:
        source: masked network whose masks are read.
        copy: masked copy of ``source``, or a wrapper with such a copy as ``module`` (torch's
            AveragedModel, say).

    Raises:
        ValueError: if the two networks are not masked in the same places.
    """
    wrapped = getattr(copy, "module", None)  # torch's AveragedModel, timm's ModelEma
    copy = wrapped if isinstance(wrapped, nn.Module) else copy
    ours, theirs = list(masked_weights(source)), list(masked_weights(copy))
    if [(name, key) for name, _, key, _ in ours] != [(name, key) for name, _, key, _ in theirs]:
        raise ValueError("the model is no copy of the network that this pruner is attached to.")
    for (_, _, _, masked), (_, _, _, other) in zip(ours, theirs, strict=True):
        other.group.waits = masked.group.waits
        other.group.set_mask(masked.group.mask)
        other.group.kept = masked.group.kept


@explain_wrong_calls
def dense_state_dict(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state_dict that the network would have after ``finalize``: pruned weights are 0.

    It loads with ``strict=True`` into a model of the same architecture without a pruner. The model
    does not change.

    Args:
        model: network with or without masks; or its state_dict, as it was saved by anybody.

    Raises:
        ValueError: if the state of the model holds objects that are not tensors, or the state of a
            mask is damaged.
    """
    if isinstance(model, Mapping):
        return _dense(tensors_of(model))
    state = tensors_of(check_model(model).state_dict())
    dense = {name: tensor for name, tensor in state.items() if not is_of_masks(name)}
    for layer_name, layer, parameter, _ in masked_weights(model):
        name = f"{layer_name}.{parameter}" if layer_name else parameter
        with torch.no_grad():
            effective = present_weight(layer, parameter)
        dense[name] = _without_negative_zeros(effective.detach())
    return dense


def _dense(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a saved state of a masked network as that of the network without masks."""
    dense = {name: tensor for name, tensor in state.items() if not is_of_masks(name)}
    for name, tensor in state.items():
        layer, found, place = name.rpartition(f"{MASKS}.")
        if not found or not place.endswith(f".{_EXTRA}") or place.count(".") != 1:
            continue  # no state of a MaskedWeight
        where = facts_of(tensor)
        mask_state = state[f"{name.removesuffix(_EXTRA)}group.{_EXTRA}"]
        weight_name = layer + where["parameter"]
        weight = dense[weight_name]
        index = None if where["index"] is None else torch.tensor(where["index"])
        scores = state[f"{name.removesuffix(_EXTRA)}group.scores"]
        mask = placed(mask_of(mask_state, scores.shape), where["dim"], index, weight.dim())
        dense[weight_name] = _without_negative_zeros(weight * mask.to(weight.device))
    return dense


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a copy of ``state`` as a dict; raise an error if a value is not a tensor.

    Args:
        state: what the state_dict of a network returned.

    Raises:
        TypeError: if ``state`` is not a mapping.
        ValueError: naming a value that is not a tensor. It may come from a layer's
            get_extra_state, or ``state`` is a checkpoint with the network's state as one value.
    """
    if not isinstance(state, Mapping):
        hint = ""
        if isinstance(state, nn.Module):
            hint = ", as its state_dict()"
        elif isinstance(state, str | os.PathLike):
            hint = ", as torch.load(path, weights_only=True) reads it"
        raise TypeError(
            f"state is a {type(state).__name__}; give a mapping of names to tensors{hint}."
        )
    for name, value in state.items():
        if isinstance(value, Tensor):
            continue
        if str(name).endswith(_EXTRA):
            fix = "return a tensor from get_extra_state, or keep that state elsewhere."
        elif isinstance(value, Mapping):
            fix = f"give what is under {name!r}, if that is the network's state."
        else:
            fix = "give the network's state_dict alone."
        raise ValueError(
            f"the state has {name} of type {type(value).__name__}; legal are tensors alone: {fix}"
        )
    return dict(state)


# The last part of the name that torch gives to the result of a layer's get_extra_state.
_EXTRA = "_extra_state"

# Prefixes of names in the states of wrappers, to remove in this order: DDP may be outside or inside
# of torch.compile.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")


@explain_wrong_calls
def load_dense_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state of a network without masks into a model with or without a pruner attached.

    Masks and scores do not change, but those of a pruner that has not begun a phase yet are chosen
    anew from the loaded weights. If a wrapper put a prefix before every name (``module.`` of DDP,
    ``_orig_mod.`` of torch.compile), the prefix is removed.

    Args:
        model: network to load the state into.
        state: state_dict of a network of the same architecture without masks.

    Raises:
        TypeError: if ``state`` is not a mapping.
        ValueError: naming the tensors that are missing, unknown or of another shape, or a value
            that is not a tensor.
    """
    if isinstance(model, Mapping):
        raise TypeError("model is a state_dict; the order is load_dense_state_dict(model, state).")
    own = tensors_of(check_model(model).state_dict())
    state = tensors_of(state)
    expected = {name: tensor for name, tensor in own.items() if not is_of_masks(name)}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state) and not expected.keys() & state.keys():
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    wrong = sorted(
        name
        for name in expected.keys() | state.keys()
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    )
    if wrong:
        raise ValueError(
            f"the state does not fit the model; these differ: {', '.join(wrong[:5])}."
            + _prefix_hint(list(state), list(expected))
        )
    model.load_state_dict(state)


def _prefix_hint(found: list[str], expected: list[str]) -> str:
    """Return a sentence for the error message if no name in a state is a name of the model.

    It says which prefix of the names may be the reason. If at least one name fits, it is "".

    Args:
        found: names in the state.
        expected: dense names of the model.
    """
    if set(found) & set(expected):
        return ""
    said = f" The state has {_first_three(found)}; the model has {_first_three(expected)}."
    for name in found:
        fits = [each for each in expected if name.endswith(f".{each}")]
        if fits:
            prefix = name.removesuffix(max(fits, key=len))
            return f"{said} Take the prefix {prefix!r} off, and leave out the names without it."
    for name in expected:
        if any(name.endswith(f".{each}") for each in found):
            return f"{said} The model holds that network below another; load it there."
    return said


def _first_three(names: list[str]) -> str:
    """Return the first three names, joined by commas, and "..." for the rest."""
    more = ", ..." if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "no tensors"
