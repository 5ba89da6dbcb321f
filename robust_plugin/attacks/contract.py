"""The contract of an attack, and ``guarded``, which makes any attack keep it.

An attack is any callable ``attack(model, x, y) -> x_adv``, of this package, of a library or of a
user. ``guarded`` turns it into an attack that leaves the model as it was and returns inputs inside
the threat model, or raises an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import naming_inputs
from robust_plugin.masks.attach import held_weights
from robust_plugin.masks.masked_layer import is_of_masks
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.contexts import evaluating
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.runtime.values import check_call, check_model
from robust_plugin.threat.model import ThreatModel, check_threat

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class SuspectNetwork(UserWarning):
    """A warning that an attack may be too weak because of something that the network does.

    ``evaluate`` lists the cause among the findings of its report.
    """


class NotFiniteGradient(SuspectNetwork):
    """A warning that NaN or infinite values of an input gradient were replaced by finite ones."""


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Return a context manager that prepares a model for an attack, and restores it at the end.

    Within the context, the model is in evaluation mode, gradients are on, and the product of each
    weight and its mask is computed once for all forward passes. At the end, also after an error,
    the training flag of every module, every buffer, and the requires_grad and .grad of every
    parameter are as before. Buffers are restored because an attack may switch to training mode by
    mistake, which changes running statistics.

    Raises:
        TypeError: if ``model`` is not an nn.Module.
        ValueError: if the model has no evaluation mode, or if the code within the context wrote to
            a parameter.
    """
    check_model(model)
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    versions = {name: _version(p) for name, p in model.named_parameters()}
    # Scores that are buffers are as large as the weights, and only the pruner writes to them.
    buffers = [(b, b.clone()) for name, b in model.named_buffers() if not is_of_masks(name)]
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
    """Return torch's count of in-place writes to a parameter, 0 for an inference tensor."""
    return 0 if parameter.is_inference() else parameter._version


def check_attack(attack: object) -> None:
    """Raise a TypeError unless an object can be called as ``attack(model, x, y)``."""
    shown = getattr(attack, "__name__", type(attack).__name__)
    if isinstance(attack, type):
        if not any("__call__" in vars(kind) for kind in attack.__mro__):
            raise TypeError(f"{shown} is a class, and no attack; give attacks, as pgd(threat).")
        raise TypeError(f"{shown} is a class; give an attack made of it, such as {shown}(threat).")
    if not callable(attack):
        raise TypeError(f"{attack!r} is no attack; give callables, such as pgd(threat).")
    if hasattr(attack, "margins") or hasattr(attack, "decide"):
        raise TypeError(f"{shown} is a certifier, and no attack; give it as certifier=.")
    if any(kind.__module__.startswith("torchattacks.") for kind in type(attack).__mro__):
        raise TypeError(
            f"torchattacks.{shown} is called as attack(x, y), on a model of its own; give "
            f"TorchAttack(torchattacks.{shown}, threat) of robust_plugin.adapters.torchattacks."
        )
    try:
        signature = inspect.signature(attack)
    except (TypeError, ValueError):  # some callables written in C have none
        return
    try:
        signature.bind("model", "x", "y")
    except TypeError as error:
        raise TypeError(
            f"{shown} cannot be called as attack(model, x, y) ({error}); if it makes an attack, "
            f"give what it returns, such as {shown}(threat)."
        ) from error


@explain_wrong_calls
def guarded(attack: Attack, threat: ThreatModel) -> Attack:
    """Wrap an attack so that it restores the model and stays in the threat model.

    If the model is wrapped in DDP or DataParallel, the attack gets the network inside the wrapper.
    The returned attack gives a detached tensor. It raises a TypeError if the inputs or the attack's
    result are not a tensor, and a ValueError for inputs outside [low, high], for a result that is
    not finite, differs in shape from the inputs, or lies outside the box or the ball, and for a
    parameter that the attack changed. Attacks of this package also raise errors for labels out of
    range and for logits that are no tensor or NaN.

    Args:
        attack: the attack to wrap; it may change its inputs in place.
        threat: threat model that inputs and results are checked against.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
    """
    check_threat(threat)
    if isinstance(attack, type) or not callable(attack):
        check_attack(attack)  # not for every attack: it takes longer than the rest of this function

    def guarded_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_call(model, x, y)
        x = x.detach()
        threat.check_inputs(x)
        model = unwrapped(model)
        with attacked(model):
            # Clones, because the attack may work in place, and because tensors made in inference
            # mode cannot take part in a backward pass.
            labels = y.clone() if y.is_floating_point() else y.clone().long()
            with naming_inputs(model, x):
                x_adv = attack(model, x.clone(), labels)
        if not isinstance(x_adv, Tensor):
            raise TypeError(f"the attack returned a {type(x_adv).__name__}; legal: a tensor.")
        threat.check_result(x_adv.detach(), x)
        return x_adv.detach()

    return guarded_attack
