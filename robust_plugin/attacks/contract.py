"""The contract of an attack, and the guard around every one of them.

An attack is any callable ``attack(model, x, y) -> x_adv``. It may come from anywhere; run inside
``guarded`` it leaves the model as it was and stays in its threat model, or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import naming_inputs
from robust_plugin.masks.attach import held_weights
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.threat.model import ThreatModel, check_threat

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class SuspectNetwork(UserWarning):
    """An attack does not see all that the network does; ``evaluate`` reports it as a finding."""


class NotFiniteGradient(SuspectNetwork):
    """Some input gradient is NaN or infinite, and an attack went on without it."""


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on, masked weights held; all as before afterwards.

    Restores every module's training flag, every buffer (an attack may forget that it is in
    evaluation mode, and move statistics), and every parameter's requires_grad and .grad, also
    when the attack raises.

    Raises:
        TypeError: if ``model`` is no nn.Module.
        ValueError: if a parameter was written to.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give an nn.Module.")
    flags = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    versions = {name: _version(p) for name, p in model.named_parameters()}
    # Masks are bool, as large as the weights, and nothing but their pruner moves them.
    buffers = [(b, b.clone()) for b in model.buffers() if b.dtype != torch.bool]
    # A library that accumulates into .grad adds in place: give it a place of its own.
    for parameter, _, grad in parameters:
        if grad is not None:
            parameter.grad = None
    try:
        _evaluation_mode(model)
        with torch.inference_mode(False), torch.enable_grad(), held_weights(model):
            yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
    for name, parameter in model.named_parameters():
        if _version(parameter) != versions.get(name):
            raise ValueError(f"the attack wrote to the parameter {name}; attack a copy instead.")


def _evaluation_mode(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:  # torch.export's programs
        raise ValueError(
            f"{type(model).__name__} has no evaluation mode ({error}); give the network that it "
            "was exported from."
        ) from error


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version


def guarded(attack: Attack, threat: ThreatModel) -> Attack:
    """Wrap any attack so that it leaves the model untouched and stays in the threat model.

    The attack sees the network inside a DDP or DataParallel wrapper.

    Raises:
        TypeError: for a threat that is no threat model; when called, if the model or the attack
            returns no tensor.
        ValueError: when called, for inputs outside [low, high], labels out of range, NaN logits, a
            result of wrong shape, not finite, or outside the box or the ball, or a changed
            parameter.
    """
    check_threat(threat)

    def guarded_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        threat.check_inputs(x)
        model = unwrapped(model)
        with attacked(model):
            # A clone: the attack may work in place, and tensors made in inference mode cannot take
            # part in a backward pass.
            labels = y.clone() if y.is_floating_point() else y.clone().long()
            with naming_inputs(model, x):
                x_adv = attack(model, x.detach().clone(), labels)
        if not isinstance(x_adv, Tensor):
            raise TypeError(f"the attack returned a {type(x_adv).__name__}; legal: a tensor.")
        threat.check_result(x_adv.detach(), x)
        return x_adv.detach()

    return guarded_attack
