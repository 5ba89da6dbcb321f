"""Compare two networks: outputs on given and random inputs in both modes, and input gradients.

The caller's example may be zeros, where a network without biases is zero whatever it mixes, and a
branch may run in training only. So networks are compared on random inputs too, and in training.
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

# Examples in a random batch: a BatchNorm of two values is nearly a sign, which rounding decides.
_EXAMPLES = 4
# Gradients of the inputs differ more: rounding decides on which side of a kink an activation is.
# A backward pass that was lost differs by more than this share of the gradient's length.
_GRADIENT = 1e-2
_DROPOUT = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout",
}  # fmt: skip
_DRAWS = {
    "rand_like", "randn_like", "bernoulli", "bernoulli_", "normal_", "uniform_", "exponential_",
}  # fmt: skip
# Of an RReLU in evaluation mode.
_SLOPE = (1 / 8 + 1 / 3) / 2


@dataclass(frozen=True)
class Trial:
    """One forward pass that two networks are compared on.

    Attributes:
        inputs: what the forward takes.
        training: whether the networks are in training mode, with statistics of this batch.
    """

    inputs: tuple[Tensor, ...]
    training: bool = False


def trials(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Trial]:
    """Return the passes to compare a network's copies on; those in training mode come last.

    The given inputs, random ones in evaluation mode, and random ones in training mode where that
    is not the same. Left out is what the network itself does not run on: a forward may check its
    inputs, or ask for targets in training.

    Args:
        model: the network; it is left as it is.
        inputs: what one forward pass takes, batch dimension first.
    """
    found = [Trial(inputs)]
    evaluated = Trial(random_like(inputs, 1))
    trained = Trial(evaluated.inputs, training=True)
    several = Trial(random_like(inputs, _EXAMPLES), training=True)
    try:
        expected = outputs(copy.deepcopy(model), evaluated)
        found.append(evaluated)
    except Exception:  # the network itself, whole, does not run there: nothing to compare
        expected = []
    try:
        alike = relative_difference(expected, outputs(copy.deepcopy(model), trained)) == 0
    except Exception:  # a BatchNorm of one value, or another number of outputs
        alike = False
    if not alike:
        try:
            outputs(copy.deepcopy(model), several)
            found.append(several)
        except Exception:  # again nothing to compare
            return found
    return found


def random_like(inputs: tuple[Tensor, ...], examples: int) -> tuple[Tensor, ...]:
    """Return inputs of at least so many examples: random numbers in the range of the given ones.

    Inputs that are no floating-point numbers, or not finite, as masks of an attention, are repeated
    as they are. Where all numbers are equal, the range is [0, 1].
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
    """Return a copy in float64 with its inputs, or in its own dtype if it does not run so."""
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:
        double = copy.deepcopy(model).double()
        outputs(copy.deepcopy(double), Trial(wide))
    except Exception:  # a forward that fixes its dtype, a device without float64
        return copy.deepcopy(model), inputs
    return double, wide


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs in evaluation mode, or say that the forward does not take the inputs.

    Raises:
        ValueError: with the forward's own error, or if it returns nothing to compare.
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
    """Return all output tensors; for copies, whose mode and running statistics it sets.

    Random numbers are the same at each call, whatever the number of channels: seeded alike, the
    same for all channels of an example, and without Dropout.
    """
    with forked(0, trial.inputs[0].device), torch.no_grad(), _DrawsAlike():
        return list(tensors_in(model.train(trial.training)(*trial.inputs)))


class _DrawsAlike(TorchFunctionMode):
    """Draw noise once an example, since channels that are gone would draw none; drop nothing."""

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
        if name.rstrip("_") == "rrelu":  # a slope drawn for each channel
            return F.leaky_relu(args[0] if args else kwargs["input"], _SLOPE)
        if name in _DRAWS and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            shape = args[0].shape
            each = args[0].reshape(len(args[0]), -1)[:, :1].clone()
            drawn = func(each, *args[1:], **kwargs).view(-1, *[1] * (len(shape) - 1)).expand(shape)
            return args[0].copy_(drawn) if name.endswith("_") else drawn.clone()
        return func(*args, **kwargs)


def tensors_in(out: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of whatever a forward returns."""
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
    """Return max |expected - found| / max |expected|, the worst of several outputs."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        scale = one.double().abs().max().clamp(min=1e-30)
        apart = (one.double() - other.double()).abs().max() / scale
        worst = max(worst, float(apart.nan_to_num(float("inf"))))
    return worst


def same_gradients(network: nn.Module, changed: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether attacks on a changed network follow the gradient of the network, where it has one.

    Gradients of a random sum of the outputs by the inputs, for networks in their own modes.
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
    return math.sqrt(apart) <= _GRADIENT * length


def _input_gradients(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients by all inputs that have one."""
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
