"""How a Pruner follows an optimizer, and what it checks of it and of the ranks it trains on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Following:
    """A hook on the optimizer whose steps move the masks, and later one that checks it."""

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._followed: torch.optim.Optimizer | None = None

    @property
    def active(self) -> bool:
        """Whether an optimizer is followed."""
        return self._followed is not None

    def start(self, optimizer: torch.optim.Optimizer, after_step: Callable[[], None]) -> None:
        """Follow an optimizer, instead of the one before: call back after each step it makes."""

        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not step_was_skipped(optimizer):
                after_step()

        self._remove()
        self._followed = optimizer
        self._hook = optimizer.register_step_post_hook(hook)

    def end(self, before_step: Callable[[torch.optim.Optimizer], None]) -> None:
        """Follow no longer; should the optimizer be used on, call back before each step.

        It would train nothing but what both phases share, silently.
        """
        followed, self._followed = self._followed, None
        self._remove()
        if followed is not None:
            self._hook = followed.register_step_pre_hook(lambda own, *_: before_step(own))

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def check_holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise unless the optimizer holds every parameter that the phase trains.

    Raises:
        TypeError: if it is no optimizer.
        ValueError: naming the parameters it lacks.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held
    ]
    if missing:
        raise ValueError(
            f"the optimizer lacks {len(missing)} parameters of this phase, such as {missing[0]!r}; "
            "build it from what set_phase returned."
        )


def warn_of_decay(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> None:
    """Warn if weight decay would pull the rates, all of them to one half."""
    learned = {id(rate) for rate in rates}
    for group in optimizer.param_groups:
        decay = group.get("weight_decay", 0)
        if decay and any(id(parameter) in learned for parameter in group["params"]):
            warnings.warn(
                f"the optimizer decays the rates by {decay}, which pulls every layer to half of "
                "its weights; build it from what set_phase returned, which exempts them.",
                stacklevel=3,
            )


def step_was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether a GradScaler made this step of a fused optimizer do nothing.

    Other optimizers are not called at all on such a step; fused ones look themselves.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)


def check_ranks(model: nn.Module) -> None:
    """Raise if the trained parameters differ between distributed processes.

    That is what wrapping in DDP before set_phase leads to, silently: DDP averages the
    gradients of those parameters only that were trained when it was made.

    Raises:
        ValueError: if a checksum differs.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_world_size() == 1:
        return
    trained = [p.detach().double() for p in model.parameters() if p.requires_grad]
    checksum = torch.stack([torch.stack([p.sum(), p.abs().sum()]) for p in trained])
    gathered = [torch.empty_like(checksum) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, checksum)
    if any(not torch.equal(other, gathered[0]) for other in gathered):
        raise ValueError(
            "scores, rates or norms differ between processes after the first step; wrap the "
            "model in DistributedDataParallel after pruner.set_phase, not before."
        )
