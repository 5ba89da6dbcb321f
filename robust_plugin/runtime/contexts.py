"""Context managers that switch precision, evaluation mode or frozen parameters, and switch back.

Proofs and comparisons need float32 without TF32 and autocast. By default torch lets convolutions
on GPUs round their factors to the 10 bits of TF32, and autocast rounds to the 7 bits of bfloat16.
Training works well with either. But a bound of 1e-5 above 0 proves nothing at that precision, and
two ways to compute the same outputs differ by 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def exact(x: Tensor) -> Iterator[None]:
    """Return a context manager in which torch uses neither autocast nor TF32.

    Within the context, torch computes in the dtype of its tensors.

    Args:
        x: a tensor on the device that computes; autocast is switched off for this kind of device.
    """
    with torch.autocast(x.device.type, enabled=False), _without_tf32():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer switches of torch are set, which the older ones cannot read
        with _without_tf32_by_newer_switches(cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
            yield
        return
    try:
        cudnn.allow_tf32 = False
        if before[1] != "highest":  # setting "highest" again would change the newer switches
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        cudnn.allow_tf32 = before[0]
        if before[1] != "highest":
            torch.set_float32_matmul_precision(before[1])


@contextmanager
def _without_tf32_by_newer_switches(*parts: Any) -> Iterator[None]:
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Return a context manager in which a model is in evaluation mode.

    At the end, also after an error, the training flag of every module is as before.

    Raises:
        ValueError: if the model has no evaluation mode, like a program of torch.export.
    """
    with keeping_modes(model):
        try:
            model.eval()
        except NotImplementedError as error:  # programs of torch.export
            raise ValueError(
                f"{type(model).__name__} has no evaluation mode ({error}); give the network that "
                "it was exported from."
            ) from error
        yield


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Return a context manager that restores the training flag of every module at its end.

    The code within the context may change the flags. They are restored after an error too.
    """
    flags = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def unfrozen(model: nn.Module) -> Iterator[None]:
    """Return a context manager in which all parameters of a model require gradients.

    It is for code that follows autograd through the parameters. At the end every parameter has its
    requires_grad and every module its training flag as before. Parameters are found by name then,
    because the code within the context may replace them.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with keeping_modes(model):
        model.requires_grad_(True)
        try:
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
