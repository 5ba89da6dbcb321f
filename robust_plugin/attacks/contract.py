"""The contract of an attack, and ``guarded``, which makes any attack keep it.

An attack is any callable ``attack(model, x, y) -> x_adv``, of this package, of a library or of a
user. Inside ``guarded`` it leaves the model as it was and returns inputs of the threat model, or an
error is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import naming_inputs
from robust_plugin.masks.attach import held_weights
from robust_plugin.runtime.contexts import evaluating
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.threat.model import ThreatModel, check_threat

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class SuspectNetwork(UserWarning):
    """A warning that an attack may not see all that the network computes.

    ``evaluate`` reports it as a finding.
    """


class NotFiniteGradient(SuspectNetwork):
    """A warning that entries of an input gradient were NaN or infinite, and were replaced."""


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Prepare a model for an attack inside, and restore it at the end, also after an error.

    Inside, the model is in evaluation mode, gradients are on, and each masked weight is computed
    once. At the end, the training flag of every module, every buffer, and the requires_grad and
    .grad of every parameter are as before. Buffers are restored because an attack may switch to
    training mode by mistake, which changes running statistics.

    Raises:
        TypeError: if ``model`` is not an nn.Module.
        ValueError: if the model has no evaluation mode, or if the code inside wrote to a
            parameter.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give an nn.Module.")
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    versions = {name: _version(p) for name, p in model.named_parameters()}
    # Masks are bool and as large as the weights. Only their pruner changes them: no copy is needed.
    buffers = [(b, b.clone()) for b in model.buffers() if b.dtype != torch.bool]
    # A library may accumulate into .grad in place, so that the user's tensor is set aside.
    for parameter, _, grad in parameters:
        if grad is not None:
            parameter.grad = None
    try:
        with (
            evaluating(model),
            torch.inference_mode(False),
            torch.enable_grad(),
            held_weights(model),
        ):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
    for name, parameter in model.named_parameters():
        if _version(parameter) != versions.get(name):
            raise ValueError(f"the attack wrote to the parameter {name}; attack a copy instead.")


def _version(parameter: Tensor) -> int:
    """Return torch's count of in-place writes; inference tensors have none."""
    return 0 if parameter.is_inference() else parameter._version


def guarded(attack: Attack, threat: ThreatModel) -> Attack:
    """Wrap an attack so that it restores the model and stays in the threat model, or raises.

    The attack gets the network inside a DDP or DataParallel wrapper. Its result is detached.

    Args:
        attack: the attack to wrap; it may work in place on its inputs.
        threat: threat model that inputs and results are checked against.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel; when called, if the model or the attack does
            not return a tensor.
        ValueError: when called, for inputs outside [low, high], labels out of range, NaN logits, a
            result that has another shape, is not finite, or lies outside the box or the ball, and
            for a parameter that the attack changed.
    """
    check_threat(threat)

    def guarded_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        threat.check_inputs(x)
        model = unwrapped(model)
        with attacked(model):
            # Clones, because the attack may work in place, and because tensors made in inference
            # mode cannot take part in a backward pass.
            labels = y.clone() if y.is_floating_point() else y.clone().long()
            with naming_inputs(model, x):
                x_adv = attack(model, x.detach().clone(), labels)
        if not isinstance(x_adv, Tensor):
            raise TypeError(f"the attack returned a {type(x_adv).__name__}; legal: a tensor.")
        threat.check_result(x_adv.detach(), x)
        return x_adv.detach()

    return guarded_attack
