"""The product of one weight and its mask, and writes to it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.mask_state import facts_of, packed
from robust_plugin.runtime.calls import user_level


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
        """Warn that the weight is trained before the first phase; called in backward passes."""
        phase, self.group.waits = self.group.waits, ""  # once is enough
        warnings.warn(
            "the model is trained while its pruner is in phase 'attached', in which no mask "
            f"changes; call pruner.set_phase({phase!r}) first, and build the optimizer from what "
            "it returns.",
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

    def lend(self, product: Tensor) -> Tensor:
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
