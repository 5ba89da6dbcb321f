"""A network by its name: those of the papers, or anybody's own by its import path."""

from __future__ import annotations

import importlib
import inspect
import operator
import os
import sys
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
    """Build a network by its name, with fresh random weights from the global generator.

    Args:
        name: one of NAMES, or "package.module:function" for anything importable, the current
            folder included; the function gets num_classes=classes if it accepts that, else nothing.
        classes: the number of logits.
        shape: (channels, height, width) of one input.
        mean: with std, put Normalize(mean, std) in front: one number a channel, inputs in [0, 1].
        std: with mean.

    Raises:
        ValueError: an unknown name, a function that cannot be imported, an input too small for the
            network, mean or std not one a channel.
        TypeError: the imported object cannot be called so, or returns no nn.Module.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean}, std={std}: give both, or neither for no normalisation")
    if mean is not None and len(mean) != shape[0]:
        raise ValueError(f"mean={mean} for inputs of {shape[0]} channels: one number a channel")
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
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does: the user's network lies beside him
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"model {name!r}: cannot import {module!r}: {error}") from error
    try:
        function = operator.attrgetter(attribute)(found)
    except AttributeError as error:
        raise ValueError(f"model {name!r}: {module} has no {attribute!r}") from error
    if not callable(function):
        raise TypeError(f"model {name!r} is a {type(function).__name__}, not a function to call")
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    accepts = takes_any or "num_classes" in signature.parameters
    arguments = {"num_classes": classes} if accepts else {}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TypeError(
            f"model {name!r} has the signature {signature}: {error}; it is called with num_classes "
            "or with nothing, so wrap it in a function that fills the rest"
        ) from error
    try:
        network = function(**arguments)
    except Exception as error:  # the user's own code
        raise ValueError(f"model {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"model {name!r} returned a {type(network).__name__}, not an nn.Module")
    return network


def example_of(shape: Sequence[int]) -> Tensor:
    """Return one input of random values in [0, 1], the same ones each time, [1, C, H, W].

    Networks are traced and compared on it: at an input of zeros many different ones are equal.
    """
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))


def check_takes(model: nn.Module, name: str, example: Tensor, classes: int) -> None:
    """Raise unless a network takes an input and gives one row of logits for it.

    Args:
        model: left in the mode it is in.
        name: of it.
        example: one input, [1, C, H, W].
        classes: of the data; more logits are legal (a label that never comes), fewer are not.

    Raises:
        ValueError: naming the shape and what the network said to it.
    """
    training, shape = model.training, tuple(example.shape)
    try:
        with torch.no_grad():
            found = model.eval()(example)
    except Exception as error:  # a network fails in as many ways as there are layers
        raise ValueError(
            f"model {name!r} does not take inputs of shape {shape}: {error}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(found, Tensor) or found.dim() != 2:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"model {name!r} gives {what} for inputs of shape {shape}; legal: [1, n].")
    if found.shape[1] < classes:
        raise ValueError(
            f"model {name!r} gives {found.shape[1]} logits, and the data has {classes} classes."
        )
