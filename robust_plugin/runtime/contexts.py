"""Float32 as it is, where a proof or a comparison counts on it.

By default torch lets convolutions on GPUs round what they multiply to TF32's 10 bits, and autocast
rounds to bfloat16's 7. Training does well with either; but a bound of 1e-5 above 0 proves nothing
then, and two ways to compute the same outputs differ by 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def exact(x: Tensor) -> Iterator[None]:
    """Compute in the tensors' own precision inside: no autocast, no TF32.

    Args:
        x: a tensor on the device that computes.
    """
    with torch.autocast(x.device.type, enabled=False), _without_tf32():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody has set torch's newer switches, which have no older reading
        with _without_tf32_by_the_newer(cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
            yield
        return
    try:
        cudnn.allow_tf32 = False
        if before[1] != "highest":  # else even setting it again would leave a trace
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        cudnn.allow_tf32 = before[0]
        if before[1] != "highest":
            torch.set_float32_matmul_precision(before[1])


@contextmanager
def _without_tf32_by_the_newer(*parts: Any) -> Iterator[None]:
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


@contextmanager
def unfrozen(model: nn.Module) -> Iterator[None]:
    """Unfreeze a model for those who follow autograd, and restore its flags and modes after.

    By name: parameters may be replaced by others meanwhile.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    model.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
        for module, mode in modes.items():
            module.training = mode
