"""Rules that bound the outputs of each kind of layer for a set of inputs.

A layer without a rule raises an error that names it, because a guessed rule could be unsound. A
subclass may compute something else than its parent, so a rule applies to the class itself and not
to its subclasses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.certificates.intervals import Bounded
from robust_plugin.masks.masked_layer import plain_class

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Layers that are non-decreasing in every input, so that mapping the ends of an interval is enough.
_RISING = (
    nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.LogSigmoid, nn.Hardtanh,
    nn.Hardsigmoid, nn.Softsign, nn.SELU,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
# These layers are non-decreasing if the attribute named here is not negative.
_SLOPES: dict[type[nn.Module], str] = {
    nn.LeakyReLU: "negative_slope",
    nn.ELU: "alpha",
    nn.CELU: "alpha",
}
# Linear layers without parameters whose weights are not negative.
_MEANS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def through_layer(
    name: str, layer: Any, z: Bounded, statistics: tuple[Tensor, Tensor] | None = None
) -> Bounded:
    """Return a set that contains the layer's outputs for all inputs of a set.

    Args:
        name: the layer's name, for errors.
        layer: a layer of any class.
        z: the set of the layer's inputs.
        statistics: mean and variance, each of shape [channels], by which a BatchNorm normalises in
            training and in evaluation mode; None for its running statistics.

    Raises:
        ValueError: if there is no rule for the layer; the message names it.
    """
    kind = plain_class(layer)
    if kind is nn.Linear:
        return z.linear(F.linear, layer.weight, layer.bias)
    if kind in CONVOLUTIONS:
        # Padding other than zeros reads some pixels twice, which the radius of an L2 ball, the
        # norm of the weight's row, does not count: such layers use the box.
        z = z if layer.padding_mode == "zeros" else z.box()
        return z.linear(layer._conv_forward, layer.weight, layer.bias)
    if kind in NORMS:
        scale, shift = scale_and_shift(name, layer, statistics)
        shape = [1, -1, *[1] * (z.box().centre.dim() - 2)]
        return z.affine(scale.view(shape), shift.view(shape))
    if kind in _RISING and not getattr(layer, "return_indices", False):
        return z.rising(layer.forward)
    if kind in _SLOPES and getattr(layer, _SLOPES[kind]) >= 0:
        return z.rising(layer.forward)
    if kind in _MEANS:
        return z.nonnegative(layer.forward)
    if kind is nn.Flatten:
        return flattened(name, z, layer.start_dim, layer.end_dim)
    if kind is nn.Identity:
        return z
    if kind in DROPOUTS:
        if layer.training and layer.p > 0:
            raise ValueError(
                f"layer {name!r} drops at random; bounds are of the network in evaluation mode: "
                "call its eval(), or set p=0."
            )
        return z
    raise ValueError(
        f"layer {name!r} is {layer}, of which there are no interval bounds; legal: linear, "
        "convolution, BatchNorm, rising activations, pooling, Flatten(1), Dropout, Identity."
    )


def flattened(name: str, z: Bounded, start: int, end: int) -> Bounded:
    """Return the set of flatten(1) for all values of a set.

    Args:
        name: name of the layer or operation, for errors.
        z: the set.
        start: first dimension to flatten; only 1 is legal.
        end: last dimension to flatten; only -1 is legal.

    Raises:
        ValueError: for other dimensions.
    """
    if start != 1 or end != -1:
        raise ValueError(
            f"{name!r} flattens dimensions {start} to {end}; bounds need flatten(1), which keeps "
            "the batch."
        )
    return z.reshaped(lambda v: v.flatten(1))


def scale_and_shift(
    name: str, norm: Any, statistics: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the scale and shift with which a BatchNorm computes scale * v + shift.

    Args:
        name: the layer's name, for errors.
        norm: the BatchNorm.
        statistics: mean and variance to normalise by, each of shape [channels]; None for the
            running statistics.

    Returns:
        tuple: scale and shift, each of shape [channels].

    Raises:
        ValueError: if the layer has no running statistics.
    """
    if norm.running_mean is None:
        raise ValueError(
            f"layer {name!r} normalises by each batch's own statistics, for which no bounds hold; "
            "give it track_running_stats=True."
        )
    # Cloned, because a later forward pass in training mode writes over the running mean, which the
    # backward pass of this graph needs.
    mean, variance = statistics or (norm.running_mean.clone(), norm.running_var)
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
