"""The contract of an attack, and the guard around every one of them.

An attack is any callable ``attack(model, x, y) -> x_adv``. It may come from anywhere; run inside
``guarded`` it leaves the model as it was and stays in its threat model, or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from robust_plugin.attachment import held_weights
from robust_plugin.threat import ThreatModel, check_threat

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


@contextmanager
def naming_inputs(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Turn torch's error for inputs that the network does not take into one sentence.

    Args:
        model: the network that is called inside, in evaluation mode.
        x: the inputs, shape [B, ...].

    Raises:
        ValueError: if something inside fails, and a plain forward pass of ``x`` does, too.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError):
        try:
            with torch.no_grad():
                model(x)
        except (RuntimeError, IndexError, ValueError) as failure:
            refuse_inputs(model, x, failure)
        raise


def refuse_inputs(model: nn.Module, x: Tensor, error: Exception) -> NoReturn:
    """Raise what a model, or its bounds, failed with on inputs, as a sentence about the inputs.

    Errors of memory and ValueErrors of the network's own code are raised as they are.

    Raises:
        ValueError: for a shape or a dtype that the model cannot take.
    """
    own = isinstance(error, ValueError) and not _raised_by_torch(error)
    if own or isinstance(error, torch.cuda.OutOfMemoryError):
        raise error
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None and weight.dtype != x.dtype:
        raise ValueError(
            f"inputs are {x.dtype} and the model's weights {weight.dtype}; give x.to({weight.dtype}"
            f"), or the model as model.to({x.dtype})."
        ) from error
    if weight is not None and weight.device != x.device:
        raise ValueError(
            f"inputs are on {x.device} and the model on {weight.device}; give x.to("
            f"{str(weight.device)!r})."
        ) from error
    raise ValueError(
        f"the model cannot take inputs of shape {tuple(x.shape)} ({error}); legal: [B, ...], a "
        "batch of what it was made for. One point is x[:1]."
    ) from error


def _raised_by_torch(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("torch.")


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DDP or DataParallel, which attacks run on.

    A forward pass of the wrapper talks to the other processes, and attacks need not make equally
    many on each.
    """
    kinds = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, kinds) else model


def innermost(model: nn.Module) -> nn.Module:
    """Return the network inside DDP, DataParallel and torch.compile, which bounds are of."""
    model = unwrapped(model)
    inner = getattr(model, "_orig_mod", model)
    return model if inner is model else innermost(inner)


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


@contextmanager
def forked(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of a device inside; then they are as before."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # Not torch.manual_seed, which reaches for other GPUs too, and nobody would restore those.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class NotFinite(ValueError):
    """A network returned NaN or infinity, as one does whose training has diverged."""


def check_logits(logits: object, y: Tensor) -> Tensor:
    """Return the logits if they are finite and of shape [B, classes], with labels to match.

    Raises:
        TypeError: if the model returned something else than a tensor.
        NotFinite: for NaN or infinity.
        ValueError: for another shape, a single output, or labels outside 0..classes-1.
    """
    found = check_labels(logits, y)
    if not bool(found.isfinite().all()):
        raise NotFinite("the model returned logits that are not finite.")
    return found


def check_labels(logits: object, y: Tensor) -> Tensor:
    """Return the logits if their shape is [B, classes] and the labels match; they may be infinite.

    For losses: where a GradScaler finds gradients that are not finite, it skips the step.

    Raises:
        TypeError: if the model returned something else than a tensor.
        ValueError: for another shape, a single output, or labels outside 0..classes-1.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned a {type(logits).__name__}; give a model that returns logits "
            "alone, e.g. a wrapper whose forward picks them."
        )
    if y.dim() != 1:
        raise ValueError(f"labels have shape {tuple(y.shape)}; legal: one integer a point.")
    if logits.dim() != 2 or len(logits) != len(y):
        raise ValueError(
            f"the model returned shape {tuple(logits.shape)} for {len(y)} labels; legal: "
            "[batch, classes]."
        )
    if logits.shape[1] < 2:
        raise ValueError(
            "the model returned one output a point; legal: one for each of two classes or more. "
            "Of a single logit z make two, torch.cat([-z, z], 1)."
        )
    if y.is_floating_point():
        raise ValueError(
            f"labels are {y.dtype}; legal: integers 0 to {logits.shape[1] - 1}, the model has "
            f"{logits.shape[1]} classes."
        )
    whole = y.long()
    if not bool(((whole >= 0) & (whole < logits.shape[1])).all()):
        least, most = (int(end) for end in whole.aminmax())
        raise ValueError(
            f"labels are {y.dtype} from {least} to {most}; legal: integers 0 "
            f"to {logits.shape[1] - 1}, the model has {logits.shape[1]} classes."
        )
    return logits
