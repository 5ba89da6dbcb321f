"""Layers that compute with their weight times a mask.

A masked layer keeps its parameters, under their names. Only its class changes: to a subclass in
which reading ``layer.weight`` gives what the network computes with. The masks are in
``layer.pruner_masks``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.masks.masked_weight import MaskedWeight

MASKS = "pruner_masks"  # the name of the masks among the layer's submodules

# Set in a layer while its own forward runs.
_COMPUTES = "_computes_masked"


def is_masked(layer: nn.Module) -> bool:
    """Return whether masks are attached to a layer."""
    return getattr(type(layer), "_is_masked", False)


def is_of_masks(name: str) -> bool:
    """Return whether a name in a state_dict is of a mask: scores, rate logits, bits of masks."""
    return MASKS in name.split(".")


def plain_class(layer: nn.Module) -> type[nn.Module]:
    """Return a layer's class, or the class it had before it was masked or parametrized."""
    for kind in type(layer).__mro__:
        if "_is_masked" in vars(kind):
            return kind.__bases__[0]
    return type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)


def masks_of(layer: nn.Module, parameter: str) -> list[MaskedWeight]:
    """Return the masks of one parameter of a layer; [] if there are none.

    There are two if two groups mask the input channels of a layer, as behind a concatenation.
    """
    every = cast(Sequence[MaskedWeight], layer._modules[MASKS] if is_masked(layer) else ())
    return [masked for masked in every if masked.parameter == parameter]


def stored_weight(layer: nn.Module, parameter: str) -> Tensor:
    """Return the parameter of a masked layer as it is stored, without the mask.

    Raises:
        ValueError: if the layer has no parameter of this name any more.
    """
    weight = layer._parameters.get(parameter)
    if weight is None:
        # A replica of DataParallel holds tensors in place of parameters.
        weight = layer.__dict__.get(parameter)
    if weight is None:
        raise ValueError(
            f"{parameter} of a masked {plain_class(layer).__name__} is no parameter any more "
            "(weight_norm or another parametrization was added); do that before the pruner is "
            "attached, or after finalize."
        )
    return cast(Tensor, weight)


def present_weight(layer: nn.Module, parameter: str) -> Tensor:
    """Return a parameter as the network computes with it now, times its mask if it has one."""
    if not is_masked(layer):
        return cast(Tensor, getattr(layer, parameter))
    weight, masks = stored_weight(layer, parameter), masks_of(layer, parameter)
    if any(masked.group.learning for masked in masks) and torch.is_grad_enabled():
        weight = weight.detach()  # the prune phase trains masks, whatever requires_grad says
    for masked in masks:
        weight = masked(weight)
    return weight


def _read(layer: nn.Module, parameter: str) -> Tensor:
    """Return what reading an attribute such as ``layer.weight`` gives.

    In the layer's own forward, that is the weight times the mask. Elsewhere it is the parameter
    itself, with zeros where the mask has them, once the mask is fixed; before, it is the product,
    and a write to it will be noticed.
    """
    masks = masks_of(layer, parameter)
    weight = stored_weight(layer, parameter)
    inside = _COMPUTES in layer.__dict__ or torch.compiler.is_compiling()
    held = any(masked.constant is not None for masked in masks)
    if inside or held or not isinstance(weight, nn.Parameter):
        return present_weight(layer, parameter)
    if all(masked.group.fixed for masked in masks):
        for masked in masks:
            masked.settle(weight)
        return weight
    return masks[-1].lend(present_weight(layer, parameter))


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def masked_class(kind: type[nn.Module], parameters: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of a layer's class whose ``parameters`` are read times their masks.

    All layers of a class share it, and so do copies of a layer.

    Args:
        kind: class of the layer.
        parameters: names of the masked parameters.
    """
    if (kind, parameters) in _CLASSES:
        return _CLASSES[kind, parameters]

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return kind.forward(self, *args, **kwargs)
        own = self.__dict__
        if _COMPUTES in own:  # the forward calls itself
            return kind.forward(self, *args, **kwargs)
        own[_COMPUTES] = True
        try:
            return kind.forward(self, *args, **kwargs)
        finally:
            del own[_COMPUTES]

    def save(self: nn.Module, *args: Any) -> None:
        write_zeros_of(self)  # a saved state is that of the pruned network once masks are fixed
        kind._save_to_state_dict(self, *args)

    def reduce(self: nn.Module, _: int) -> tuple[Any, ...]:
        # object has no __getstate__ before Python 3.11.
        state = getattr(self, "__getstate__", lambda: self.__dict__)()
        return _rebuilt, (kind, parameters), state

    reads = {name: _property(name) for name in parameters}
    body = {
        "forward": forward,
        "_save_to_state_dict": save,
        "__reduce_ex__": reduce,
        "_is_masked": True,
        **reads,
    }
    # torch.fx takes a layer for one of torch's by the module of its class.
    body["__module__"] = kind.__module__
    made = _CLASSES[kind, parameters] = type(f"Masked{kind.__name__}", (kind,), body)
    return made


def write_zeros_of(layer: nn.Module) -> None:
    """Write the zeros of fixed masks into the parameters of a masked layer."""
    for masked in cast(Sequence[MaskedWeight], layer._modules[MASKS]):
        weight = layer._parameters.get(masked.parameter)
        if masked.group.fixed and weight is not None:
            masked.write_zeros(weight)


def _property(parameter: str) -> property:
    """Return the property through which a masked parameter is read."""

    def read(layer: nn.Module) -> Tensor:
        return _read(layer, parameter)

    def write(layer: nn.Module, value: Tensor) -> None:
        # nn.Module itself sets parameters. DataParallel sets plain tensors in its replicas.
        layer.__dict__[parameter] = value

    return property(read, write)


def _rebuilt(kind: type[nn.Module], parameters: tuple[str, ...]) -> nn.Module:
    """Return an empty masked layer, for copies and pickles."""
    made = masked_class(kind, parameters)
    return made.__new__(made)
