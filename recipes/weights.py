"""Weights of a dense network from a file, whoever wrote it; a pickle is never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_plugin import checkpoint
from robust_plugin.dense import load_dense_state_dict


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a dense network: safetensors, or a state_dict that ``weights_only`` can read.

    Raises:
        ValueError: if the file is missing, unreadable or of another model.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}.")
    if path.suffix == ".safetensors":
        tensors, _ = checkpoint.read_tensors(path)
        stage = {k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")}
        state: Mapping[str, Any] = stage or tensors
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds; none of them names the file
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} holds no plain state_dict: {reason}") from error
        state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
        if not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise ValueError(f"{path} holds no plain state_dict: no mapping of names to tensors.")
    load_dense_state_dict(model, state)
