"""Objectives with distillation: the network also learns the outputs of a teacher.

The teacher is usually the dense network that is pruned. ``distilled`` adds the term to any
objective, on the inputs that this objective passes through the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import outputs_of
from robust_plugin.attacks.losses import kl_divergence
from robust_plugin.objectives.by_attack import Objective
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.contexts import evaluating
from robust_plugin.runtime.distributed import innermost, unwrapped
from robust_plugin.runtime.values import check_call, check_model, is_number


@explain_wrong_calls
def distilled(objective: Objective, teacher: nn.Module, *, weight: float = 0.5) -> Objective:
    """Return the objective (1 - a) L + a KL(T(x') || f(x')), with a the weight and T the teacher.

    L is the given objective, and x' are the inputs that it passes through the network f in
    training: the adversarial inputs of ``adversarial``, clean and adversarial ones of ``trades``.
    The KL divergence is a mean over these inputs, at temperature 1. This is the distillation of
    Hinton et al. 2015 on the inputs of robust training. Goldblum et al. 2020 and Zi et al. 2021
    compare f(x') with T(x), the outputs of a robust teacher for clean inputs; here both networks
    see the same inputs, because the teacher is robust too and the pruned network is to be like it.

    Args:
        objective: the objective that is mixed with the term.
        teacher: network with the same classes. It computes in evaluation mode, without gradients,
            and must not be the network that is trained.
        weight: a, from 0 to 1.

    Raises:
        TypeError: if the teacher is no nn.Module or returns no tensor, or ``objective`` cannot be
            called.
        ValueError: for an illegal weight; when it is called, if teacher and network are the same
            or have other outputs, or the objective passes no inputs through the network.

    >>> from robust_plugin.objectives.by_attack import benign
    >>> model, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> objective = distilled(benign, teacher)
    >>> objective(model, torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])).requires_grad
    True
    """
    check_model(teacher)
    if not callable(objective):
        raise TypeError(f"objective is {objective!r}; give a callable, as adversarial(attack) is.")
    if not (is_number(weight) and 0 <= weight <= 1):
        raise ValueError(f"weight is {weight!r}; legal: the share of the KL term, 0 to 1.")

    @explain_wrong_calls
    def with_teacher(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        network = unwrapped(model)
        if innermost(model) is innermost(teacher):
            raise ValueError(
                "the teacher is the network that is trained; give a copy of the dense network, "
                "copy.deepcopy(model), made before the pruner is attached."
            )
        with _passed_through(network) as passed:
            loss = objective(model, x, y)
        if not passed:
            raise ValueError(
                "the objective passed no inputs through the network, so there is nothing to learn "
                "from the teacher; it must call the network that it is given."
            )
        with torch.no_grad(), evaluating(teacher):
            wanted = [outputs_of(teacher, inputs.detach()) for inputs, _ in passed]
        terms = [
            _divergence(target, output) for target, (_, output) in zip(wanted, passed, strict=True)
        ]
        return (1 - weight) * loss + weight * torch.stack(terms).mean()

    return with_teacher


def _divergence(target: Tensor, output: Tensor) -> Tensor:
    """Return the mean of KL(T(x') || f(x')) over the points, from the logits of both networks.

    Raises:
        TypeError: if the teacher returned no tensor.
        ValueError: if the logits have different shapes.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"the teacher returned a {type(target).__name__}; legal: logits, a tensor.")
    if target.shape != output.shape:
        raise ValueError(
            f"the outputs of the teacher have shape {tuple(target.shape)}, those of the network "
            f"{tuple(output.shape)}; give a teacher with the same classes."
        )
    return kl_divergence(target, output).mean()


@contextmanager
def _passed_through(network: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the list of (inputs, outputs) of the forward passes that training differentiates.

    The passes of an attack are not among them: it runs in evaluation mode and differentiates with
    respect to its inputs.
    """
    passed: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        is_tensor = args and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        if is_tensor and output.requires_grad and (module.training or not args[0].requires_grad):
            passed.append((args[0], output))

    handle = network.register_forward_hook(record)
    try:
        yield passed
    finally:
        handle.remove()
