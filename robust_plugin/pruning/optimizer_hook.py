"""The hook that updates masks after each step of an optimizer, and checks of optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.budget.budget import Budget
from robust_plugin.budget.control import PhaseSteps
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.runtime.calls import user_level
from robust_plugin.runtime.values import is_whole


class Following:
    """Hooks on the optimizers of a shrink or prune phase.

    From ``start`` to ``end`` it calls a function after each step, to update the masks. From ``end``
    on it calls a check before each step.
    """

    def __init__(self) -> None:
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._followed: tuple[torch.optim.Optimizer, ...] = ()

    @property
    def active(self) -> bool:
        """Whether a function is called after each step of an optimizer."""
        return bool(self._followed)

    def start(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        before_step: Callable[[torch.optim.Optimizer], None],
        after_step: Callable[[], None],
    ) -> None:
        """From now on call ``before_step`` before the steps of these optimizers, and of no others.

        After each step of the last one, call ``after_step``. A step that a GradScaler skips does
        not count as a step.

        Args:
            optimizers: the innermost optimizers, in the order in which they step.
            before_step: gets the optimizer that is about to step.
            after_step: called without arguments.
        """

        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not step_was_skipped(optimizer):
                after_step()

        self._remove()
        for former in self._followed:
            if former not in optimizers:
                former.register_step_pre_hook(self._warn_of_former)
        self._followed = tuple(optimizers)
        for each in optimizers:
            handle = each.register_step_pre_hook(lambda own, *_: before_step(own))
            self._hooks.append(handle)
        self._hooks.append(optimizers[-1].register_step_post_hook(hook))

    def end(self, before_step: Callable[[torch.optim.Optimizer], None]) -> None:
        """End the calls after steps; from now on call ``before_step`` before each step instead.

        ``before_step`` gets an optimizer that was given to ``start``, and can raise an error: an
        optimizer of the prune phase that is used in the next phase would silently train only the
        parameters that both phases train.
        """
        followed, self._followed = self._followed, ()
        if followed:
            self._remove()
        for each in followed:
            handle = each.register_step_pre_hook(lambda own, *_: before_step(own))
            self._hooks.append(handle)

    def _warn_of_former(self, former: torch.optim.Optimizer, *_: Any) -> None:
        """Warn if an optimizer that is followed no more makes a step while another is followed."""
        if self._followed and former not in self._followed:
            warnings.warn(
                "this optimizer was followed before another one was: its steps update no masks any "
                "more. Follow all optimizers of the phase at once: follow([first, second], ...).",
                stacklevel=user_level(),
            )

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


# Attributes under which wrappers hold the optimizer that makes the steps: accelerate and Lightning
# use the first, SAM and Lookahead the second.
_INNER = ("optimizer", "base_optimizer")


def innermost_optimizers(optimizer: object) -> tuple[torch.optim.Optimizer, ...]:
    """Return the optimizers inside of wrappers, one for each optimizer that is given.

    A wrapper holds another optimizer as ``optimizer`` or ``base_optimizer``. Its own ``step`` may
    never be called (SAM's loops call ``first_step`` and ``second_step``), but that of the inner
    optimizer is.

    Args:
        optimizer: a torch optimizer, a wrapper of one, or a list of these.

    Raises:
        TypeError: if there is no torch optimizer inside.
        ValueError: if the optimizer evaluates the loss several times within one step (LBFGS), or
            the list is empty.
    """
    given = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    if not given:
        raise ValueError("there are no optimizers to follow; give at least one.")
    found = []
    for each in given:
        inner: Any = each
        seen = [inner]
        while True:
            held = [getattr(inner, name, None) for name in _INNER]
            held = [one for one in held if hasattr(one, "param_groups") and one not in seen]
            if not held:
                break
            inner = held[0]
            seen.append(inner)
        known = isinstance(inner, torch.optim.Optimizer) and hasattr(each, "param_groups")
        if not known or not hasattr(inner, "_optimizer_step_post_hooks"):
            raise TypeError(
                f"optimizer is a {type(each).__name__}; give a torch.optim.Optimizer, a wrapper "
                "that holds one as .optimizer or .base_optimizer, or a list of these."
            )
        if isinstance(inner, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS cannot be followed: within one step it evaluates the loss several times, "
                "and the masks move after the step. Take SGD or Adam for the prune phase."
            )
        found.append(inner)
    return tuple(found)


def check_holds(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module) -> None:
    """Raise an error unless the optimizers hold every parameter of the model that requires grad.

    Raises:
        ValueError: naming a parameter that the optimizers lack.
    """
    held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    missing = [
        name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held
    ]
    if missing:
        raise ValueError(
            f"the optimizer lacks {len(missing)} parameters of this phase, such as {missing[0]!r}; "
            "build it from what set_phase returned."
        )


def check_lengths(
    epochs: int | None, steps_per_epoch: int | None, *, required: bool
) -> tuple[int, int]:
    """Return (epochs, steps_per_epoch) of a shrink or prune phase, with 0 for None.

    Args:
        epochs: number of epochs; None if not given.
        steps_per_epoch: number of optimizer steps per epoch; None if not given.
        required: whether both must be given, which is so if the density falls in the phase, or
            layer densities are learned.

    Raises:
        ValueError: if a length is no whole number, or one is required and missing or below 1.
    """
    lengths = (epochs or 0, steps_per_epoch or 0)
    if not all(is_whole(length) for length in lengths):
        raise ValueError(
            f"epochs is {epochs!r} and steps_per_epoch is {steps_per_epoch!r}; legal: whole "
            "numbers, such as len(loader) steps."
        )
    if required and min(lengths) < 1 or min(lengths) < 0:
        raise ValueError(
            f"epochs is {epochs} and steps_per_epoch is {steps_per_epoch}; the density and learned "
            "rates move over the whole phase: give both, at least 1."
        )
    return lengths


def warn_of_first_step(masks: Sequence[GroupMask], *, hinge: bool, penalised: bool) -> None:
    """Warn if the first step of the prune phase cannot have learned what it should.

    Args:
        masks: the masks with the scores and rate logits that are learned.
        hinge: whether layer densities are learned with the penalty of the budget.
        penalised: whether ``Pruner.budget_penalty`` was called.
    """
    learned = [p for mask in masks for p in mask.parameters() if p.requires_grad]
    if all(parameter.grad is None for parameter in learned):
        warnings.warn(
            "the optimizer made a step, and scores and rates have no gradient, so that the masks "
            "stay as they are; call loss.backward() before optimizer.step(), on a loss of the "
            "model that the pruner is attached to.",
            stacklevel=user_level(),
        )
    if hinge and not penalised:
        warnings.warn(
            "control='hinge' meets the budget by a penalty, and budget_penalty() was not called; "
            "train on loss + pruner.budget_penalty(), or take control='held'.",
            stacklevel=user_level(),
        )


def warn_of_decay(optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[Tensor]) -> None:
    """Warn if the optimizer applies weight decay to rate logits.

    It pulls the logits to 0 and thus the densities of all layers to about one half.

    Args:
        optimizers: optimizers of the prune phase.
        rates: the logits of the learned layer densities.
    """
    learned = {id(rate) for rate in rates}
    for group in (group for each in optimizers for group in each.param_groups):
        decay = group.get("weight_decay", 0)
        if decay and any(id(parameter) in learned for parameter in group["params"]):
            warnings.warn(
                f"the optimizer decays the rates by {decay}, which pulls every layer to half of "
                "its weights; build it from what set_phase returned, which exempts them.",
                stacklevel=user_level(),
            )


def warn_of_cut(share: float, budget: Budget, steps: PhaseSteps) -> None:
    """Warn if learned layer densities end the prune phase more than 1 % above the budget.

    The weights or channels above the budget are then pruned at once, without training.

    Args:
        share: share of the dense network's cost that the learned densities keep.
        budget: the budget that the prune phase should have reached.
        steps: number of optimizer steps done, and planned length of the phase.
    """
    if share > 1.01 * budget.total / budget.full:
        warnings.warn(
            f"the rates ended at {share:.4g}, the budget is {budget.density:.4g}, at step "
            f"{steps.step} of {steps.total}; the rest is cut at once. follow() "
            "counts optimizer steps, not batches; the hinge may need more of them.",
            stacklevel=user_level(),
        )


def step_was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a GradScaler made the present step of a fused optimizer change nothing.

    If gradients overflow, a GradScaler does not call ``step`` of other optimizers; it calls that of
    fused ones, which then do nothing because their attribute ``found_inf`` is set.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)
