"""2:4 sparse Linear layers for CUDA: their weights in torch's compressed format, where they fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from robust_plugin.export.replace_layers import with_layers
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.select import most_kept
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.values import check_model

# What both of torch's kernels, cuSPARSELt and CUTLASS, accept: floats of 16 bits, rows in
# multiples of 32 and columns in multiples of 64, on compute capability 8.0 and above.
_DTYPES = (torch.float16, torch.bfloat16)
_BLOCK = (32, 64)
_CAPABILITY = (8, 0)


@explain_wrong_calls
def semi_structured(model: nn.Module) -> tuple[nn.Module, Mapping[str, str]]:
    """Return a copy for inference whose 2:4 sparse Linear layers hold compressed weights.

    2:4 sparse means that at most two of every four consecutive weights of a row are not zero. The
    weights are converted by ``torch.sparse.to_sparse_semi_structured``, which drops weights that do
    not fit without a check; here every row is checked first. Convolutions stay dense, because torch
    has no such kernel for them. The copy is for outputs only: torch cannot differentiate its 2:4
    products with respect to their input, so gradient attacks on the copy raise an error. Attack the
    dense network.

    Args:
        model: a finalized network on a CUDA device, float16 or bfloat16; it is not changed.

    Returns:
        The copy, in evaluation mode, and a dict with an entry for each Linear layer, by its name:
        ``"2:4"``, or the reason why the layer stays dense.

    Raises:
        ValueError: if a pruner is attached, the network is not on a suitable CUDA device, or no
            layer can be compressed, with the reason for each.
    """
    if next(masked_weights(check_model(model)), None) is not None:
        raise ValueError("a pruner is attached to the network; call pruner.finalize() first.")
    _refuse_other_devices(model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found = {name: obstacle(layer) or "2:4" for name, layer in layers.items()}
    if "2:4" not in found.values():
        reasons = "; ".join(f"{name or 'the layer'} {why}" for name, why in found.items())
        raise ValueError(f"no layer can be compressed: {reasons or 'there is no Linear layer'}.")
    new: dict[nn.Module, nn.Module] = {
        layer: _compressed(layer) for name, layer in layers.items() if found[name] == "2:4"
    }
    return with_layers(model, new).eval(), found


def obstacle(layer: nn.Linear) -> str | None:
    """Return why the weight of a layer cannot have torch's 2:4 format, or None if it can."""
    rows, columns = layer.weight.shape
    if type(layer) is not nn.Linear:
        return f"is a {type(layer).__name__}"
    if "forward" in vars(layer):
        return "has a forward of its own"
    if layer.weight.dtype not in _DTYPES:
        return f"is {layer.weight.dtype}; call model.half() or model.bfloat16()"
    if rows % _BLOCK[0] or columns % _BLOCK[1]:
        return f"has {rows} x {columns} weights, no multiple of {_BLOCK[0]} x {_BLOCK[1]}"
    most = most_kept(layer.weight, 4)
    if most > 2:
        return f"keeps up to {most} of 4 weights"
    return None


def _refuse_other_devices(model: nn.Module) -> None:
    devices = {parameter.device for parameter in model.parameters()}
    kinds = sorted({device.type for device in devices})
    if kinds != ["cuda"]:
        there = "call model.cuda()" if torch.cuda.is_available() else "this machine has none"
        raise ValueError(
            f"torch's 2:4 kernels need a CUDA device, and the network is on {', '.join(kinds)}; "
            f"{there}. For a CPU there is sparse()."
        )
    for device in devices:
        capability = torch.cuda.get_device_capability(device)
        if capability < _CAPABILITY:
            raise ValueError(
                f"{device} has compute capability {capability[0]}.{capability[1]}; torch's 2:4 "
                f"kernels need {_CAPABILITY[0]}.{_CAPABILITY[1]}."
            )


def _compressed(layer: nn.Linear) -> nn.Linear:
    # Built on the meta device, because its initial weight is replaced at once.
    new = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())
    new.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return new.eval()
