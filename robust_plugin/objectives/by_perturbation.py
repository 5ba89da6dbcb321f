"""Objectives at the worst parameters nearby: flat minima in weight space or in score space.

``perturbed`` is adversarial weight perturbation while weights train, and the perturbation of scores
of S2AP while scores are learned: it perturbs what the present phase trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust_plugin.objectives.by_attack import Objective, same_examples
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import rank_and_world, unwrapped
from robust_plugin.runtime.values import check_call, is_number


@explain_wrong_calls
def perturbed(objective: Objective, *, gamma: float) -> Objective:
    """Return the objective max_v L(w + v), ``||v_l|| <= gamma ||w_l||`` for each tensor w_l.

    w are the trained tensors of two or more dimensions: the weights, or in the prune phase the
    scores, whose perturbation moves the masks. The maximum is approximated by one step
    v_l = gamma ``||w_l||`` g_l / ``||g_l||`` along the gradient g of L (Wu et al. 2020, equations 8
    and 10, with K2 = 1; for scores Piras et al. 2025). Pruned weights have no gradient, so they are
    not perturbed and do not count in ``||w_l||``. Both losses are of the same adversarial inputs,
    so a step costs one forward and one backward pass more.

    The returned scalar has the value of L(w + v), and its gradient is that of L at w + v; the
    parameters are back at w when the objective returns. So ``backward``, clipping and optimizers
    work as usual. With DDP, g is averaged over the processes.

    Args:
        objective: the objective L.
        gamma: relative size of the perturbation; 0.005 to 0.01 in the paper.

    Raises:
        TypeError: if ``objective`` cannot be called.
        ValueError: for a negative gamma.

    >>> from robust_plugin.objectives.by_attack import benign
    >>> model, objective = nn.Linear(4, 3), perturbed(benign, gamma=0.01)
    >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> bool(objective(model, x, y) > benign(model, x, y))
    True
    """
    if not callable(objective):
        raise TypeError(f"objective is {objective!r}; give a callable, such as adversarial(attack).")
    if not (is_number(gamma) and gamma >= 0):
        raise ValueError(f"gamma is {gamma!r}; legal: at least 0; 0.005 to 0.01 in the paper.")

    @explain_wrong_calls
    def at_the_worst(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        trained = [p for p in model.parameters() if p.requires_grad]
        moved = [p for p in trained if p.dim() > 1]
        buffers = {b: b.clone() for b in model.buffers()}
        with same_examples() as examples:
            first = objective(unwrapped(model), x, y)
            grads = _averaged(torch.autograd.grad(first, moved, allow_unused=True))
            with torch.no_grad():
                for buffer, before in buffers.items():  # BatchNorm counts this batch once
                    buffer.copy_(before)
                before = [p.detach().clone() for p in moved]
                for parameter, grad in zip(moved, grads, strict=True):
                    if grad is not None:
                        parameter.add_(_worst_step(parameter, grad, gamma))
            try:
                examples.repeat()
                loss = objective(model, x, y)
                found = torch.autograd.grad(loss, trained, allow_unused=True)
            finally:
                with torch.no_grad():
                    for parameter, value in zip(moved, before, strict=True):
                        parameter.copy_(value)
        return _Linear.apply(loss.detach(), found, *trained)  # type: ignore[no-any-return]

    return at_the_worst


def _worst_step(parameter: Tensor, grad: Tensor, gamma: float) -> Tensor:
    """Return gamma ``||w||`` g / ``||g||``; entries without gradient do not count in ``||w||``."""
    size = (parameter * (grad != 0)).norm()
    return gamma * size / grad.norm().clamp(min=1e-12) * grad


def _averaged(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Return gradients averaged over the processes."""
    if rank_and_world()[1] > 1:
        for grad in grads:
            if grad is not None:
                torch.distributed.all_reduce(grad)
                grad.div_(rank_and_world()[1])
    return grads


class _Linear(torch.autograd.Function):
    """A scalar with a given value, whose gradients with respect to parameters are given too."""

    @staticmethod
    def forward(ctx, value, grads, *parameters):  # type: ignore[no-untyped-def]
        """Return ``value``."""
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx, scale):  # type: ignore[no-untyped-def]
        """Return the given gradients times that of the scalar."""
        return (None, None, *(None if g is None else scale * g for g in ctx.grads))
