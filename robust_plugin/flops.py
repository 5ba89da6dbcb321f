"""FLOPs: how many multiply-adds each weight of a model takes part in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def multiply_adds(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[tuple[str, str], int]:
    """Count the multiply-adds a single weight of each layer takes part in, for one example.

    A traced forward pass of the model as it is: a convolution's weight is used once an output
    position (transposed: an input position), a linear layer's once a token, layers called twice
    count twice. Flags, statistics and gradients of the model are left alone.

    Args:
        model: any model.
        inputs: the arguments of its forward, with a batch dimension first.

    Returns:
        dict: (layer name, parameter name) -> multiply-adds a weight.
    """
    batch = inputs[0].shape[0]
    found: dict[tuple[str, str], int] = {}

    def count(name: str, parameter: str, positions: int) -> None:
        found[name, parameter] = found.get((name, parameter), 0) + positions // batch

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle | None:
        def of_output(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            transposed = getattr(layer, "transposed", False)
            used = args[0] if transposed else out
            channels = getattr(layer, "in_channels" if transposed else "out_channels", None)
            count(name, "weight", used.numel() // (channels or out.shape[-1]))

        def of_attention(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], __: object
        ) -> None:
            query = args[0] if args else kwargs["query"]
            count(name, "in_proj_weight", query.numel() // query.shape[-1])
            # The fused attention reads out_proj's weight without calling the layer.
            count(f"{name}.out_proj", "weight", query.numel() // query.shape[-1])

        if isinstance(layer, nn.MultiheadAttention):
            return layer.register_forward_hook(of_attention, with_kwargs=True)
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            return layer.register_forward_hook(of_output)
        return None

    flags = {module: module.training for module in model.modules()}
    handles = [watch(name, layer) for name, layer in model.named_modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            if handle is not None:
                handle.remove()
        for module, training in flags.items():
            module.training = training
    return found
