"""Comparison of two networks by their outputs and by the gradients with respect to their inputs.

The outputs are compared on given inputs, on random inputs and in training mode. Given inputs alone
are not enough: they may be zeros, where every network without biases gives zero. And a network may
have a branch that runs in training mode only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust_plugin.runtime.random import forked
from robust_plugin.runtime.tolerances import INPUT_GRADIENTS

# Number of examples in a random batch in training mode. The BatchNorm of two values is nearly a
# sign function, and rounding decides the sign.
_EXAMPLES = 4
_DROPOUT = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout",
}  # fmt: skip
_NOISE = {
    "rand_like", "randn_like", "bernoulli", "bernoulli_", "normal_", "uniform_", "exponential_",
}  # fmt: skip
# The slope of an RReLU in evaluation mode.
_SLOPE = (1 / 8 + 1 / 3) / 2


@dataclass(frozen=True)
class Trial:
    """Inputs and mode of one forward pass, on which the outputs of two networks are compared.

    Attributes:
        inputs: the inputs of the forward pass.
        training: whether the networks run in training mode, where BatchNorms use the statistics of
            these inputs.
    """

    inputs: tuple[Tensor, ...]
    training: bool = False


def trials(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Trial]:
    """Return the forward passes on which copies of a network are compared.

    In this order: the given inputs and random inputs in evaluation mode, then random inputs in
    training mode, if the outputs differ between the modes. A pass is left out if the network itself
    does not run on it: a forward method may check its inputs, or ask for targets in training mode.

    Args:
        model: the network; it is not changed.
        inputs: inputs of one forward pass, batch dimension first.
    """
    found = [Trial(inputs)]
    evaluated = Trial(random_like(inputs, 1))
    trained = Trial(evaluated.inputs, training=True)
    several = Trial(random_like(inputs, _EXAMPLES), training=True)
    try:
        expected = outputs(copy.deepcopy(model), evaluated)
        found.append(evaluated)
    except Exception:  # the network itself does not run there, so there is nothing to compare
        expected = []
    try:
        alike = relative_difference(expected, outputs(copy.deepcopy(model), trained)) == 0
    except Exception:  # a BatchNorm of a single value, or another number of outputs
        alike = False
    if not alike:
        try:
            outputs(copy.deepcopy(model), several)
            found.append(several)
        except Exception:  # the network itself does not run there either
            return found
    return found


def random_like(inputs: tuple[Tensor, ...], examples: int) -> tuple[Tensor, ...]:
    """Return random inputs in the range of the given ones, with at least ``examples`` examples.

    The range of an input is that of its values, or [0, 1] if all of them are equal. An input of
    integer or bool values, or with values that are not finite (an attention mask, say), is not
    drawn, but repeated until it has enough examples.

    Args:
        inputs: inputs of one forward pass, batch dimension first.
        examples: least size of the batch.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for x in inputs:
        times = -(-examples // max(1, len(x))) if x.dim() else 1
        x = x.detach().repeat(times, *[1] * (x.dim() - 1)) if times > 1 else x.detach()
        if x.is_floating_point() and x.numel() and bool(x.isfinite().all()):
            low, high = x.double().amin().item(), x.double().amax().item()
            low, high = (low, high) if low < high else (0.0, 1.0)
            drawn = low + (high - low) * torch.rand(x.shape, generator=generator)
            x = drawn.to(x)
        found.append(x)
    return tuple(found)


def doubled(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a copy of the network and its inputs in float64.

    If the network does not run in float64, both keep their dtypes.

    Args:
        model: the network; it is not changed.
        inputs: inputs of one forward pass.
    """
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:
        double = copy.deepcopy(model).double()
        outputs(copy.deepcopy(double), Trial(wide))
    except Exception:  # a forward pass with a fixed dtype, or a device without float64
        return copy.deepcopy(model), inputs
    return double, wide


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Run a network in evaluation mode, and return the floating-point tensors of its output.

    Args:
        model: the network; it stays in evaluation mode.
        inputs: inputs of the forward pass.

    Raises:
        ValueError: if the forward pass fails (the message has its error), or returns no
            floating-point tensor.
    """
    try:
        out = outputs(model, Trial(inputs))
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run on example_inputs of shapes "
            f"{[tuple(x.shape) for x in inputs]}; give what its forward takes, several inputs as "
            f"a tuple: {error}"
        ) from error
    if not out:
        raise ValueError(
            f"{type(model).__name__} returns no floating-point tensors, bare or in tuples, lists "
            "and dicts; wrap it in a module that does."
        )
    return out


def outputs(model: nn.Module, trial: Trial) -> list[Tensor]:
    """Run a network on a trial, and return the floating-point tensors of its output.

    Networks with different numbers of channels can be compared: the seed of the random numbers is
    the same at each call, all channels of an example get the same number, and Dropout does nothing.

    Args:
        model: a copy of the network, since its mode and running statistics change.
        trial: inputs and mode of the forward pass.
    """
    with forked(0, trial.inputs[0].device), torch.no_grad(), _SharedNoise():
        return list(tensors_in(model.train(trial.training)(*trial.inputs)))


class _SharedNoise(TorchFunctionMode):
    """Within the context, all channels of an example get the same random number; Dropout is off.

    Otherwise a network without some of the channels would draw fewer random numbers, and all later
    ones would differ.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name.rstrip("_") in _DROPOUT:
            return args[0] if args else kwargs["input"]
        if name.rstrip("_") == "rrelu":  # a random slope per channel
            return F.leaky_relu(args[0] if args else kwargs["input"], _SLOPE)
        if name in _NOISE and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            shape = args[0].shape
            each = args[0].reshape(len(args[0]), -1)[:, :1].clone()
            drawn = func(each, *args[1:], **kwargs).view(-1, *[1] * (len(shape) - 1)).expand(shape)
            return args[0].copy_(drawn) if name.endswith("_") else drawn.clone()
        return func(*args, **kwargs)


def tensors_in(out: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in the output of a forward pass, however it is nested."""
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from tensors_in(value)
    elif isinstance(out, Sequence) and not isinstance(out, str):
        for value in out:
            yield from tensors_in(value)


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return max ``|expected - found|`` / max ``|expected|``, the largest over all outputs.

    The result is infinite if two outputs differ in shape, or if a difference is NaN.

    Args:
        expected: outputs of the original network.
        found: outputs of the other network, in the same order.
    """
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        scale = one.double().abs().max().clamp(min=1e-30)
        apart = (one.double() - other.double()).abs().max() / scale
        worst = max(worst, float(apart.nan_to_num(float("inf"))))
    return worst


def same_gradients(network: nn.Module, changed: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether two networks have the same gradients with respect to their inputs.

    If so, an attack on the changed network follows the gradients of the original. The gradients are
    those of a randomly weighted sum of the outputs, with each network in the mode it is in. If the
    original has no such gradients, the result is True.

    Args:
        network: the original network.
        changed: the network to check.
        inputs: inputs of one forward pass.
    """
    try:
        expected = _input_gradients(network, inputs)
    except Exception:  # the network has no backward pass to lose
        return True
    if not expected:
        return True
    try:
        found = _input_gradients(changed, inputs)
    except Exception:  # a product that torch cannot differentiate
        return False
    if len(found) != len(expected):
        return False
    length = math.sqrt(sum(float(each.double().square().sum()) for each in expected))
    each = zip(expected, found, strict=True)
    apart = sum(float((one.double() - other.double()).square().sum()) for one, other in each)
    return math.sqrt(apart) <= INPUT_GRADIENTS * length


def _input_gradients(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of a randomly weighted sum of the outputs by the inputs.

    Inputs that the outputs do not depend on are left out.

    Args:
        model: the network; it returns one tensor.
        inputs: inputs of one forward pass.
    """
    leaves = tuple(
        x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs
    )
    wanted = [x for x in leaves if x.requires_grad]
    with torch.enable_grad():
        out = model(*leaves)
        if not (wanted and out.requires_grad):
            return []
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(out.shape, generator=generator).to(out)
        grads = torch.autograd.grad((out * weights).sum(), wanted, allow_unused=True)
    return [grad for grad in grads if grad is not None]
