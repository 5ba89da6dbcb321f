"""Trace a network with torch-pruning, and remove listed channels from it."""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from robust_plugin.channels.cut import History
from robust_plugin.copies.agreement import run, tensors_in
from robust_plugin.runtime.contexts import unfrozen

# Inputs of one forward pass.
Inputs = Tensor | tuple[Tensor, ...]

# Layers that make channels: those from whose outputs torch-pruning starts a group.
ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


def replay(model: nn.Module, inputs: tuple[Tensor, ...], history: History) -> None:
    """Remove the listed channels from a network, in place.

    ``requires_grad`` of the parameters and the training flags of the layers do not change.

    Args:
        model: the network to cut, without masks.
        inputs: inputs of one forward pass.
        history: the removals in order, each as (layer name, True for output channels, indices of
            the removed channels).
    """
    with unfrozen(model):
        graph = trace(model, inputs)
        graph.load_pruning_history(list(history))


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Return torch-pruning's dependency graph of a network, a ``torch_pruning.DependencyGraph``.

    Args:
        model: the network, or a copy: all its parameters get ``requires_grad=True`` and stay so,
            because torch-pruning follows autograd.
        inputs: inputs of one forward pass.

    Raises:
        ValueError: if the forward pass fails or torch-pruning cannot read the graph.
    """
    run(model, inputs)
    model.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            # Times 1, so that the graph ends in outputs and not in the layers that compute them.
            return tp.DependencyGraph().build_dependency(
                model,
                inputs,
                output_transform=lambda out: [o * 1 for o in tensors_in(out)],
                verbose=False,
            )
    except Exception as error:
        raise ValueError(
            f"torch-pruning cannot read the graph of {type(model).__name__}: {error!r}"
        ) from error


def as_tuple(example_inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the inputs as a tuple.

    torch-pruning would take a bare tensor as one input for each example of the batch.

    Raises:
        TypeError: if no input is a tensor.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not any(isinstance(each, Tensor) for each in inputs):
        raise TypeError(
            f"example_inputs is {example_inputs!r}; give a tensor or a tuple of tensors, as x[:1]."
        )
    return inputs
