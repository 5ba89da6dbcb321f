"""Files of networks with CSR layers: saving, and loading into a copy of the dense network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.export.csr_layers import SparseConv2d, SparseLayer, SparseLinear
from robust_plugin.export.replace_layers import with_layers
from robust_plugin.masks.detach import tensors_of
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.files import read_tensors, write_tensors
from robust_plugin.runtime.values import check_model, check_path


@explain_wrong_calls
def save_sparse(path: str | Path, model: nn.Module) -> None:
    """Write the state_dict of a network with CSR layers to a safetensors file, atomically.

    Args:
        path: the file; its folder must exist.
        model: network with CSR layers, the first value that ``sparse`` returns.

    Raises:
        ValueError: if the folder of the file does not exist.
    """
    write_tensors(path, tensors_of(check_model(model).state_dict()), {"layers": "csr"})


@explain_wrong_calls
def load_sparse(path: str | Path, model: nn.Module) -> nn.Module:
    """Return a copy of a network with the CSR layers and the state that ``save_sparse`` wrote.

    The copy is frozen and in evaluation mode.

    Args:
        path: a file that ``save_sparse`` wrote.
        model: a dense network of the same architecture; it is not changed.

    Raises:
        ValueError: if the file is truncated, was not written by ``save_sparse`` or is of another
            network, or if its indices do not form a CSR matrix.
    """
    path = check_path(path)
    check_model(model)
    state, content = read_tensors(path)
    if content.get("layers") != "csr":
        raise ValueError(f"{path} was not written by save_sparse.")
    modules = dict(model.named_modules(remove_duplicate=False))
    new: dict[nn.Module, nn.Module] = {}
    try:
        for key in state:
            name, _, buffer = key.rpartition(".")
            if buffer == "crow_indices":
                new[modules[name]] = _stored_layer(modules[name], name, state)
        loaded = with_layers(model, new).eval().requires_grad_(False)
        loaded.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit this network: {reason}") from error
    return loaded


def _stored_layer(layer: nn.Module, name: str, state: Mapping[str, Tensor]) -> SparseLayer:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise KeyError(f"{name} is a {type(layer).__name__}, no Linear or Conv2d.")
    rows = layer.weight.flatten(1)
    crow, col, values = (
        state[f"{name}.{key}"] for key in ("crow_indices", "col_indices", "values")
    )
    shape = (len(rows), rows.shape[1] * (layer.groups if isinstance(layer, nn.Conv2d) else 1))
    # The product does not check its indices; a wrong one would read memory outside the tensor.
    csr = torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=True)
    if isinstance(layer, nn.Linear):
        return SparseLinear.of(layer, csr)
    return SparseConv2d.of(layer, csr)
