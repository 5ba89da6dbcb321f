"""Back to the plain network: masks taken off, and states under the names it had before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.masks.attach import GroupMask, MaskedWeight, chain_of, masked_weights
from robust_plugin.masks.select import most_kept


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


def lend_masks(source: nn.Module, copy: nn.Module) -> None:
    """Give a copy of a masked network, or what an averaged model wraps, the original's masks.

    Raises:
        ValueError: if the two are not masked in the same places.
    """
    wrapped = getattr(copy, "module", None)  # torch's AveragedModel, timm's ModelEma
    copy = wrapped if isinstance(wrapped, nn.Module) else copy
    ours, theirs = list(masked_weights(source)), list(masked_weights(copy))
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

    Raises:
        ValueError: for a model whose state holds other things than tensors.
    """
    state = tensors_of(model.state_dict())
    dense: dict[str, Tensor] = {}
    for name, under in dense_names(model).items():
        dense[name] = state[under]
        if name != under:
            dense[name] = _without_negative_zeros(effective_weight(model, name))
    return dense


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state, if it holds tensors alone.

    Raises:
        TypeError: if it is no mapping.
        ValueError: naming what is no tensor: what a layer's get_extra_state gave, or a checkpoint
            whose state is one of several things in it.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}; give a mapping of names to tensors.")
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


def effective_weight(model: nn.Module, name: str) -> Tensor:
    """Return the parameter of a dense name as the model computes with it, without a graph."""
    prefix, _, key = name.rpartition(".")
    weight: Tensor = getattr(model.get_submodule(prefix), key)
    return weight.detach()


# What torch names a layer's get_extra_state in the state.
_EXTRA = "_extra_state"
# DDP outside or inside of torch.compile.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")


def load_dense_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a plain architecture's state into a model with or without a pruner attached.

    Masks and scores stay as they are. What a wrapper put before every name (``module.`` of DDP,
    ``_orig_mod.`` of torch.compile) is taken off.

    Raises:
        TypeError: if the state is no mapping.
        ValueError: naming the tensors that are missing, unknown or of another shape, or what is
            no tensor.
    """
    state, own = tensors_of(state), tensors_of(model.state_dict(keep_vars=True))
    expected = {name: own[under] for name, under in dense_names(model).items()}
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
            + _names_apart(list(state), list(expected))
        )
    with torch.no_grad():
        for name, tensor in state.items():
            if name.endswith(_EXTRA):  # what get_extra_state gave may be no part of the layer
                model.get_submodule(name.rpartition(".")[0]).set_extra_state(tensor)
            else:
                expected[name].copy_(tensor)


def _names_apart(found: list[str], expected: list[str]) -> str:
    """Say what names a state has and a model expects, where a prefix is why none fits."""
    if set(found) & set(expected):
        return ""
    said = f" The state has {_first(found)}; the model has {_first(expected)}."
    for name in found:
        fits = [each for each in expected if name.endswith(f".{each}")]
        if fits:
            prefix = name.removesuffix(max(fits, key=len))
            return f"{said} Take the prefix {prefix!r} off, and leave out the names without it."
    for name in expected:
        if any(name.endswith(f".{each}") for each in found):
            return f"{said} The model holds that network below another; load it there."
    return said


def _first(names: list[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "no tensors"
