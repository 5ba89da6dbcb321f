"""Build a network from its name, or from the import path of a function that returns it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from robust_plugin.recipes.models.networks import (
    Shape,
    cnn_large,
    cnn_small,
    digits_cnn,
    digits_cnn_small,
    resnet18,
    resnet50,
    vgg16_bn,
    wide_resnet,
)
from robust_plugin.recipes.runtime.own_code import call
from robust_plugin.runtime.contexts import evaluating
from robust_plugin.threat.layers import Normalize

_MODELS: dict[str, Callable[[int, Shape], nn.Module]] = {
    "digits-cnn": digits_cnn,
    "digits-cnn-small": digits_cnn_small,
    "cnn-small": cnn_small,
    "cnn-large": cnn_large,
    "vgg16-bn": vgg16_bn,
    "resnet18": resnet18,
    "resnet18-w16": partial(resnet18, width=16),
    "resnet50": resnet50,
    "wrn-28-4": wide_resnet,
    "wrn-28-10": partial(wide_resnet, width=10),
}
NAMES = tuple(_MODELS)


def build_model(
    name: str,
    *,
    classes: int,
    shape: Shape,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Build a network with new random weights, drawn from torch's global generator.

    Args:
        name: one of ``NAMES``, or "package.module:function" for a function that returns the
            network. The module may also be in the current folder. The function is called with
            num_classes=classes if it accepts that, else without arguments.
        classes: number of logits.
        shape: (channels, height, width) of one input.
        mean: mean of each channel, for inputs in [0, 1]. With mean and std, the network begins with
            the layer Normalize(mean, std); without them it has no such layer.
        std: standard deviation of each channel, for inputs in [0, 1]; None if mean is None.

    Raises:
        ValueError: for an unknown name, a function that cannot be imported or that fails, an input
            too small for the network, or mean and std without exactly one number per channel.
        TypeError: if the imported object cannot be called this way, or returns no nn.Module.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean}, std={std}: give both, or neither for no normalisation")
    if mean is not None and len(mean) != shape[0]:
        raise ValueError(f"mean={mean} for inputs of {shape[0]} channels: one number per channel")
    if name in _MODELS:
        network = _MODELS[name](classes, shape)
    elif ":" in name:
        network = _imported(name, classes)
    else:
        raise ValueError(
            f"unknown model {name!r}; legal are {', '.join(NAMES)}, or package.module:function "
            "for a function that returns an nn.Module"
        )
    if mean is None or std is None:
        return network
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), network=network))


def _imported(name: str, classes: int) -> nn.Module:
    """Return the network that a function of the user returns.

    Args:
        name: where the function is, as "package.module:function".
        classes: number of logits; passed as num_classes if the function accepts that.

    Raises:
        ValueError: if the function cannot be imported, or fails.
        TypeError: if it cannot be called this way, or returns no nn.Module.
    """
    network = call(name, what="model", offered={"num_classes": classes})
    if not isinstance(network, nn.Module):
        raise TypeError(f"model {name!r} returned a {type(network).__name__}, not an nn.Module")
    return network


def example_of(shape: Sequence[int]) -> Tensor:
    """Return one input, shape [1, C, H, W], of random values in [0, 1], the same for each call.

    It is the input with which networks are traced and compared. An input of zeros would not do:
    many different networks give the same output for it.

    Args:
        shape: (C, H, W) of the input.
    """
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))


def check_takes(model: nn.Module, name: str, example: Tensor, classes: int) -> None:
    """Check that a network takes an input of the data and returns logits of shape [1, n] for it.

    Args:
        model: the network; it stays in its mode (training or evaluation).
        name: name of the network in error messages.
        example: one input, shape [1, C, H, W].
        classes: number of classes of the data. The network may have more logits, for labels that
            never occur, but not fewer.

    Raises:
        ValueError: if the network fails, returns no logits, or too few. The message names the
            shape of the input, and the network's error or output.
    """
    shape = tuple(example.shape)
    try:
        with evaluating(model), torch.no_grad():
            found = model(example)
    except Exception as error:  # a network fails in as many ways as there are layers
        raise ValueError(
            f"model {name!r} does not take inputs of shape {shape}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 2:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"model {name!r} gives {what} for inputs of shape {shape}; legal: [1, n].")
    if found.shape[1] < classes:
        raise ValueError(
            f"model {name!r} gives {found.shape[1]} logits, and the data has {classes} classes."
        )
