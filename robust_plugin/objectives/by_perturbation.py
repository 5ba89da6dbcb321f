"""Objectives at the worst parameters nearby: flat minima in weight space or in score space.

``perturbed`` is adversarial weight perturbation while weights train, and the perturbation of scores
of S2AP while scores are learned: it perturbs what the present phase trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.masks.attach import refresh_masks, write_zeros
from robust_plugin.masks.masked_layer import is_of_masks
from robust_plugin.objectives.adversarial_inputs import keeping_inputs
from robust_plugin.objectives.by_attack import Objective
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import rank_and_world, unwrapped
from robust_plugin.runtime.values import check_call, is_number

Gradients = Sequence[Tensor | None]


@explain_wrong_calls
def perturbed(objective: Objective, *, gamma: float) -> Objective:
    """Return the objective max_v L(w + v), ``||v_l|| <= gamma ||w_l||`` for each tensor w_l.

    w are the weights that are trained: parameters of two or more dimensions (AWP, Wu et al. 2020,
    section 4). In the prune phase w are the scores, and the masks of the scores w + v are chosen
    anew (S2AP, Piras et al. 2025). The maximum is approximated by one step along the gradient g of
    L, v_l = gamma ``||w_l||`` g_l / ``||g_l||``. Pruned weights are not perturbed and do not count
    in ``||w_l||``.

    The returned scalar has the value of L(w + v), and its gradient is that of L at w + v. The
    parameters are back at w when the objective returns, so ``backward``, clipping, GradScalers and
    optimizers work as usual. As in the official code of AWP, both losses are of the same
    adversarial inputs, and BatchNorm's running statistics follow only the second one. So a step
    costs one forward and one backward pass more. Objectives that draw noise, such as ``smoothadv``,
    draw it anew for the second loss. With several processes, g is averaged over all points. Under
    ``torch.no_grad``, the value is that of L.

    Args:
        objective: the objective L.
        gamma: relative size of the perturbation, at least 0; the paper of AWP takes 0.005.

    Raises:
        TypeError: if ``objective`` cannot be called.
        ValueError: for a negative gamma; when it is called, if no weights and no scores are
            trained.

    >>> from robust_plugin.objectives.by_attack import benign
    >>> model, objective = nn.Linear(4, 3), perturbed(benign, gamma=0.01)
    >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> bool(objective(model, x, y) > benign(model, x, y))
    True
    """
    if not callable(objective):
        raise TypeError(f"objective is {objective!r}; give a callable, as adversarial(attack) is.")
    if not (is_number(gamma) and gamma >= 0):
        raise ValueError(f"gamma is {gamma!r}; legal: at least 0, such as 0.005.")

    @explain_wrong_calls
    def at_the_worst(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        if not torch.is_grad_enabled():
            return objective(model, x, y)
        moved = _moved(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        write_zeros(model)  # momentum may have moved pruned weights, which ||w|| leaves out
        with keeping_inputs() as inputs:
            with _restored_buffers(model):
                first = objective(unwrapped(model), x, y)
                grads = torch.autograd.grad(first, moved, allow_unused=True)
            steps = _worst_steps(moved, _averaged(grads, len(x)), gamma)
            inputs.repeat()
            with _moved_by(model, moved, steps):
                loss = objective(model, x, y)
                found = torch.autograd.grad(loss, trained, allow_unused=True)
        worst: Tensor = _Linear.apply(loss.detach(), found, *trained)
        return worst

    return at_the_worst


def _moved(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are perturbed: trained ones of two or more dimensions.

    Scores have as many, also those of channels; learned rates, biases and the parameters of
    normalisations have fewer.

    Raises:
        ValueError: if there are none.
    """
    found = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    if not found:
        raise ValueError(
            "there is nothing to perturb: the present phase trains no weights of two or more "
            "dimensions and no scores; take the objective without perturbed in this phase."
        )
    return found


def _averaged(grads: Gradients, points: int) -> Gradients:
    """Return gradients averaged over the points of all processes.

    Args:
        grads: gradients of the mean loss over the points of this process.
        points: number of these points.
    """
    present = [grad for grad in grads if grad is not None]
    if rank_and_world()[1] == 1 or not present:
        return grads
    total = torch.tensor(float(points), device=present[0].device)
    torch.distributed.all_reduce(total)
    averaged = [None if grad is None else grad * (points / total) for grad in grads]
    for grad in averaged:
        if grad is not None:
            torch.distributed.all_reduce(grad)
    return averaged


def _worst_steps(
    moved: Sequence[Tensor], grads: Gradients, gamma: float
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of a parameter w and its step gamma ``||w||`` g / ``||g||``.

    Gradients that are not finite, whose step a GradScaler skips, move nothing.
    """
    return [
        (w, (gamma * w.detach().norm() / g.norm().clamp(min=1e-12) * g).nan_to_num(0.0, 0.0, 0.0))
        for w, g in zip(moved, grads, strict=True)
        if g is not None
    ]


@contextmanager
def _restored_buffers(model: nn.Module) -> Iterator[None]:
    """Within the context, forward passes may change buffers; at its end they are as before."""
    # Scores that are buffers are as large as the weights, and only the pruner writes to them.
    buffers = [(b, b.clone()) for name, b in model.named_buffers() if not is_of_masks(name)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def _moved_by(
    model: nn.Module, moved: Sequence[Tensor], steps: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Within the context, parameters are moved by given steps, and masks follow their scores."""
    before = [parameter.detach().clone() for parameter in moved]
    try:
        with torch.no_grad():
            for parameter, step in steps:
                parameter.add_(step)
        refresh_masks(model)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)
        refresh_masks(model)


class _Linear(torch.autograd.Function):
    """A scalar with a given value, whose gradients with respect to parameters are given too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: Gradients, *parameters: Tensor) -> Tensor:
        """Return ``value``."""
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Return the given gradients times that of the scalar."""
        return (None, None, *(None if grad is None else scale * grad for grad in ctx.grads))
