"""Layers that compute with their weight times a mask.

A masked layer keeps its parameters, under their names. Only its class changes: to a subclass in
which reading ``layer.weight`` gives what the network computes with. The masks are in
``layer.pruner_masks``.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.mask_state import facts_of, packed
from robust_plugin.runtime.calls import user_level

MASKS = "pruner_masks"  # the name of the masks among the layer's submodules

# Set in a layer while its own forward runs.
_COMPUTES = "_computes_masked"


class MaskedWeight(nn.Module):
    """Multiplies one parameter of a layer by the mask of a group.

    Args:
        group: scores and mask of the group that the weight belongs to.
        parameter: name of the parameter in the layer.
        dim: dimension of the weight along which the mask selects channels; None if the mask has the
            shape of the weight.
        index: for each position along ``dim``, the channel of the group that it belongs to, or -1
            where nothing is masked; None if position i belongs to channel i.
    """

    def __init__(
        self,
        group: GroupMask,
        parameter: str = "weight",
        *,
        dim: int | None = None,
        index: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.group = group
        self.parameter = parameter
        self.dim = dim
        self.index = None if index is None else index.to(group.mask.device)
        # Inside of held_weights(): the effective weight as a constant; else None.
        self.constant: Tensor | None = None
        self._forget()

    def _forget(self) -> None:
        # The parameter whose gradients are masked by a hook, and the hook.
        self._hooked: weakref.ref[Tensor] | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        # A product that was read from outside of the layer's forward, to notice writes to it.
        self._read: tuple[Tensor, Tensor] | None = None
        self._written: Tensor | None = None

    def entries(self, dtype: torch.dtype, dims: int) -> Tensor:
        """Return the mask in a shape that broadcasts to a weight of ``dims`` dimensions."""
        mask: Tensor = self.group(dtype)
        return placed(mask, self.dim, self.index, dims)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight times the mask; inside ``held_weights``, the product computed there."""
        if self.constant is not None:
            return self.constant
        mask = self.entries(weight.dtype, weight.dim())
        if mask.device != weight.device:  # in a replica of DataParallel
            mask = mask.to(weight.device)
        if is_sharded(weight):
            raise ValueError(SHARDED)
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

    def settle(self, weight: nn.Parameter) -> None:
        """Write the zeros of a fixed mask into the parameter, and mask its gradients from now on.

        So the parameter itself is what the network computes with, and may be read and written.
        """
        self.write_zeros(weight)
        hooked = None if self._hooked is None else self._hooked()
        if torch.is_grad_enabled() and weight.requires_grad and hooked is not weight:
            self._hook = weight.register_hook(self._masked)  # type: ignore[no-untyped-call]
            self._hooked = weakref.ref(weight)

    def write_zeros(self, weight: nn.Parameter) -> None:
        """Write the zeros of the mask into the parameter, so that its saved state has them."""
        with torch.no_grad():
            # Not seen by autograd: a weight that is zero there already does not change.
            weight.data.mul_(self.entries(weight.dtype, weight.dim()))

    def _masked(self, grad: Tensor) -> Tensor:
        return grad * self.entries(grad.dtype, grad.dim())

    def lend(self, weight: Tensor, product: Tensor) -> Tensor:
        """Return ``product``, which is read outside of the layer's forward; note it for later."""
        self.note_writes()
        self._read = (product, product.detach().clone())
        return product

    def note_writes(self) -> None:
        """Compare the product that was read last with what it was."""
        if self._read is None:
            return
        (product, before), self._read = self._read, None
        with torch.no_grad():
            changed = (product.detach() != before).any()
        self._written = changed if self._written is None else self._written | changed

    def was_written(self) -> bool:
        """Return whether somebody wrote to a product, where the weight does not get it."""
        self.note_writes()
        written, self._written = self._written, None
        return written is not None and bool(written)

    def release(self) -> None:
        """Stop masking gradients."""
        if self._hook is not None:
            self._hook.remove()
        self._forget()

    def get_extra_state(self) -> Tensor:
        """Return which parameter is masked and where, so that a state can be read on its own."""
        index = None if self.index is None else self.index.tolist()
        return packed({"parameter": self.parameter, "dim": self.dim, "index": index})

    def set_extra_state(self, state: Tensor) -> None:
        """Check that a state is of a mask on the same parameter.

        Raises:
            ValueError: naming both parameters.
        """
        found = facts_of(state)
        if (found["parameter"], found["dim"]) != (self.parameter, self.dim):
            raise ValueError(
                f"the state masks {found['parameter']} along dimension {found['dim']}, this layer "
                f"{self.parameter} along {self.dim}; attach the pruner that the state is of."
            )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if f"{prefix}_extra_state" in state_dict:  # else the state of a network without masks
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedWeight:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.index is not None:
            self.index = self.index.to(self.group.mask.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a copy, whose parameter has no hook."""
        private = dict.fromkeys(("_hooked", "_hook", "_read", "_written"))
        return {**self.__dict__, **private}


SHARDED = (
    "the weights are sharded (FSDP), and masks are chosen over whole weights; train with DDP or on "
    "one device, finalize, and shard the plain network."
)


def is_sharded(weight: Tensor) -> bool:
    """Return whether a weight is one of several shards (a DTensor of FSDP2)."""
    return hasattr(weight, "device_mesh")


def placed(mask: Tensor, dim: int | None, index: Tensor | None, dims: int) -> Tensor:
    """Return a group's mask in a shape that broadcasts to a weight of ``dims`` dimensions.

    Args:
        mask: the mask of the group.
        dim: dimension of the weight along which it selects channels; None for a mask of weights.
        index: for each position along ``dim``, its channel or -1 for no mask; None for the same.
        dims: number of dimensions of the weight.
    """
    if dim is None:
        return mask
    mask = mask.flatten()
    if index is not None:  # -1 reads the appended 1
        mask = torch.cat([mask, mask.new_ones(1)])[index.to(mask.device)]
    return mask.view([-1 if d == dim else 1 for d in range(dims)])


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
    return masks[-1].lend(weight, present_weight(layer, parameter))


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
        settle(self)  # a saved state is that of the pruned network once masks are fixed
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


def settle(layer: nn.Module) -> None:
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
