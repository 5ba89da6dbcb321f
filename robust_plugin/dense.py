"""Back to the plain network: masks taken off, and states under the names it had before."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.attachment import GroupMask, MaskedWeight, chain_of, masked_weights
from robust_plugin.masks import most_kept


def copied(model: nn.Module, replaced: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a network.

    Args:
        model: it is left as it is.
        replaced: what stands in the copy for objects of the network, by their ``id``.

    Raises:
        ValueError: if it cannot be copied, with the reason.
    """
    try:
        return copy.deepcopy(model, replaced)
    except Exception as error:  # in as many ways as there are objects
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {reason[0]}. Weights that a hook makes "
            "(torch.nn.utils.weight_norm and spectral_norm) are the usual reason: remove them, or "
            "take those of torch.nn.utils.parametrizations."
        ) from error


def finalize(model: nn.Module) -> None:
    """Turn every masked layer into the plain layer it was, zeros in place.

    Works on the network a pruner is attached to and on any copy of it (deepcopy, EMA), each with
    the masks it carries itself; for the pruner's masks in a copy, see ``Pruner.finalize``.

    Raises:
        ValueError: if no layer of the model is masked, or if a mask is not of the size or the
            pattern that it was chosen with: some averages of models also average masks.
    """
    found = list(masked_weights(model))
    if not found:
        raise ValueError(
            "finalize found no masked layer; is it this model a pruner is attached to?"
        )
    for name, _, _, carrier in found:
        _check_mask(carrier.group, name)
    with torch.no_grad():
        effective = [getattr(layer, parameter) for _, layer, parameter, _ in found]
        for (_, layer, parameter, _), value in zip(found, effective, strict=True):
            chain_of(layer, parameter).original.copy_(_without_negative_zeros(value))
    for _, layer, _, _ in found:
        _detach(layer)


def _check_mask(group: GroupMask, name: str) -> None:
    ones, kept = int(group.mask.sum()), int(group.kept)
    if ones != kept:
        raise ValueError(
            f"the mask of {name} keeps {ones} entries instead of {kept}, as in a copy whose "
            "buffers were averaged; call pruner.finalize(copy), which lends it the masks."
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
    # -1 times a mask's 0 is -0.0, which is not the pattern of bits that a file of non-zeros leaves
    # out. Adding 0 changes nothing else.
    return weight + 0.0


def _detach(layer: nn.Module) -> None:
    # torch's remove_parametrizations deletes the property from the layer's class, which a
    # deepcopied model shares: it would break the other copy. The layer gets its own class back.
    if not parametrize.is_parametrized(layer):
        return
    chains = cast(nn.ModuleDict, layer.parametrizations)
    order: tuple[str, ...] = ()
    for parameter, chain in chains.items():
        layer._parameters[parameter] = cast(nn.Parameter, chain.original)
        order = max(order, cast(MaskedWeight, cast(nn.ModuleList, chain)[0]).order, key=len)
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    # In the order they had, which optimizers' saved states number them by.
    for parameter in order:
        layer._parameters[parameter] = layer._parameters.pop(parameter)


def lend_masks(source: nn.Module, target: nn.Module) -> None:
    """Give a copy of a masked network, or what an averaged model wraps, the original's masks.

    Raises:
        ValueError: if the two are not masked in the same places.
    """
    wrapped = getattr(target, "module", None)  # torch's AveragedModel, timm's ModelEma
    target = wrapped if isinstance(wrapped, nn.Module) else target
    ours, theirs = list(masked_weights(source)), list(masked_weights(target))
    if [(name, key) for name, _, key, _ in ours] != [(name, key) for name, _, key, _ in theirs]:
        raise ValueError("the model is no copy of the network that this pruner is attached to.")
    for (_, _, _, carrier), (_, _, _, other) in zip(ours, theirs, strict=True):
        other.group.mask.copy_(carrier.group.mask)
        other.group.kept.copy_(carrier.group.kept)


def dense_names(model: nn.Module) -> dict[str, str]:
    """Map each name of the plain architecture's state to the tensor's name in this model.

    They differ where a mask is attached; scores, rates and counts have no dense name.
    """
    carried = {}
    for name, _, parameter, _ in masked_weights(model):
        prefix = f"{name}." if name else ""
        carried[f"{prefix}parametrizations.{parameter}."] = prefix + parameter
    names = {}
    for under in model.state_dict():
        masked = next((prefix for prefix in carried if under.startswith(prefix)), None)
        if masked is None:
            names[under] = under
        elif under == f"{masked}original":
            names[carried[masked]] = under
    return names


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of the plain architecture: dense names, zeros where weights are pruned.

    Loads strictly into a model that no pruner ever touched.
    """
    state = model.state_dict()
    dense: dict[str, Tensor] = {}
    for name, under in dense_names(model).items():
        dense[name] = state[under]
        if name != under:
            dense[name] = _without_negative_zeros(effective_weight(model, name))
    return dense


def effective_weight(model: nn.Module, name: str) -> Tensor:
    """Return the parameter of a dense name as the model computes with it, without a graph."""
    prefix, _, key = name.rpartition(".")
    weight: Tensor = getattr(model.get_submodule(prefix), key)
    return weight.detach()


# DDP outside or inside of torch.compile.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")


def load_dense_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a plain architecture's state into a model with or without a pruner attached.

    Masks and scores stay as they are. What a wrapper put before every name (``module.`` of DDP,
    ``_orig_mod.`` of torch.compile) is taken off.

    Raises:
        ValueError: naming the tensors that are missing, unknown or of another shape.
    """
    own = model.state_dict(keep_vars=True)
    names = {name: own[under] for name, under in dense_names(model).items()}
    # What a module returns from get_extra_state may be anything; only tensors are weights.
    expected = {name: value for name, value in names.items() if isinstance(value, Tensor)}
    state = {name: value for name, value in state.items() if name in expected or name not in names}
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
            f"the state does not fit {type(model).__name__}; these differ: "
            f"{', '.join(_difference(name, expected, state) for name in wrong[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}. The state has "
            f"{_first(state)}; the model has {_first(expected)}."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            expected[name].copy_(tensor)


def _difference(name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    if name not in theirs:
        return f"{name} (missing)"
    if name not in ours:
        return f"{name} (unknown)"
    return f"{name} (shape {tuple(theirs[name].shape)}, expected {tuple(ours[name].shape)})"


def _first(state: Mapping[str, object]) -> str:
    names = list(state)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'nothing'}{more}"
