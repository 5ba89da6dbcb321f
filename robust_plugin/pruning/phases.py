"""The phases of a Pruner: their order, and what each of them trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_plugin.masks.attach import GroupMask
from robust_plugin.masks.prunable import norm_parameters

Learnable = Literal["scores", "rates"]


Phase = Literal["attached", "prune", "finetune", "finalized"]


def check_order(current: Phase, wanted: str, *, learns: bool, name: str) -> None:
    """Raise unless a phase may follow another: prune, finetune, finalize.

    Args:
        current: the phase so far.
        wanted: the next one.
        learns: whether the pruner learns anything.
        name: what errors call it.

    Raises:
        ValueError: naming the phase and the order.
    """
    if wanted not in ("prune", "finetune"):
        raise ValueError(f"phase is {wanted!r}; legal: 'prune', then 'finetune'.")
    if wanted == "prune" and not learns:
        raise ValueError(
            f"{name} learns nothing, so it has no prune phase; start at set_phase('finetune')."
        )
    if current == "finalized" or (wanted == "prune" and current == "finetune"):
        raise ValueError(
            f"phase {wanted!r} cannot follow {current!r}; the order is prune, finetune, finalize."
        )
    if wanted == "finetune" and current == "attached" and learns:
        raise ValueError(nothing_learned(name))


def nothing_learned(name: str) -> str:
    """Return what is wrong with a learning pruner that skips its prune phase."""
    return f"{name} has learned nothing yet; run the phase 'prune' first, or take MagnitudePruner."


def train_only(
    model: nn.Module,
    masks: Sequence[GroupMask],
    phase: Literal["prune", "finetune"],
    learn: Collection[Learnable],
    frozen: Collection[nn.Parameter],
) -> list[dict[str, Any]]:
    """Freeze what a phase does not train, and return optimizer param groups of the rest.

    Prune: scores, rates and norms; finetune: everything but scores and rates. Scores and rates
    get no weight decay.

    Args:
        model: the masked network.
        masks: with its scores and rates.
        phase: what begins.
        learn: what the prune phase learns.
        frozen: parameters that stay frozen in any phase.
    """
    norms = set(norm_parameters(model))
    own = {parameter for mask in masks for parameter in mask.parameters()}
    for parameter in model.parameters():
        if parameter not in own and parameter not in frozen:
            parameter.requires_grad_(phase == "finetune" or parameter in norms)
    scores = [mask.scores for mask in masks if "scores" in learn]
    rates = [mask.rate for mask in masks if mask.rate is not None]
    for parameter in (*scores, *rates):
        parameter.requires_grad_(phase == "prune")
    others = [p for p in model.parameters() if p.requires_grad and p not in own]
    groups: list[dict[str, Any]] = [{"params": others}]
    if phase == "prune":
        groups += [{"params": learned, "weight_decay": 0.0} for learned in (scores, rates)]
    return [group for group in groups if group["params"]]


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
