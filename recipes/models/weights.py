"""Load the weights of a dense network from a file; code in the file is never run.

The file may be one that a run of the recipes wrote, or one from elsewhere.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.masks.detach import load_dense_state_dict
from robust_plugin.masks.masked_layer import is_of_masks
from robust_plugin.recipes.runtime.weight_files import check_file
from robust_plugin.runtime.files import read_tensors

_SHOWN = 8  # keys of a file that an error lists


_USUAL = "state_dict"  # the key of a network's state in most training loops


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights from a file into a dense network.

    The file is safetensors, or a state_dict that torch.load reads with weights_only=True. The
    state_dict may be under a key such as ``"model"`` or ``"state_dict"``, beside other content, if
    it is the only mapping of names to tensors in the file. If all names begin with the same part,
    such as ``backbone.``, and are the names of the model without this part, it is removed.

    Args:
        model: the network; its weights are replaced.
        path: path of the file.

    Raises:
        ValueError: if the file is missing, cannot be read, or does not fit the model.
    """
    check_file(path)
    if path.suffix == ".safetensors":
        tensors, _ = read_tensors(path)
        stage = {k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")}
        state: Mapping[str, Tensor] = stage or tensors
    else:
        state = _state_in(_loaded(path), path)
    inner = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    one = len({name.partition(".")[0] for name in state}) == 1
    own = {name for name in model.state_dict() if not is_of_masks(name)}
    load_dense_state_dict(model, inner if one and inner.keys() == own else state)


def _loaded(path: Path) -> Any:
    """Return the content of a file that torch.save wrote, without running code from it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript archives, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch raises errors of many types. None of them names the file, and some advise to load
    # objects that can run code.
    except Exception as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "it is damaged, or not a file of tensors that torch.save wrote"
        if named is not None:
            reason = f"it holds {named[1]} beside tensors, and loading that could run code"
        raise ValueError(
            f"{path} holds no plain state_dict: {reason}; expected is what "
            "torch.save(model.state_dict(), path) writes."
        ) from error


def _state_in(content: Any, path: Path) -> Mapping[str, Tensor]:
    """Return the state_dict in the content of a file.

    Args:
        content: what torch.load returned: a state_dict, or a mapping that holds one under a key.
        path: path of the file, for the error message.

    Raises:
        ValueError: if there is no mapping of names to tensors, or more than one that may be meant.
    """
    found = {"": content, **content} if isinstance(content, Mapping) else {"": content}
    states = {key: each for key, each in found.items() if _is_state(each)}
    usual = states.get(_USUAL, {})
    # Other tensors in the file, such as the state of a generator, are not a second network if they
    # share no name with the usual state.
    if usual and not any(usual.keys() & each.keys() for k, each in states.items() if k != _USUAL):
        states = {_USUAL: usual}
    if len(states) == 1:
        state: Mapping[str, Tensor] = next(iter(states.values()))
        return state
    what = f"it is a {type(content).__name__}"
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:_SHOWN]) or "none"
        more = f" and {len(content) - _SHOWN} more" if len(content) > _SHOWN else ""
        which = ", ".join(repr(key) for key in states) or "none"
        what = f"its keys are {keys}{more}; mappings of names to tensors under them: {which}"
    raise ValueError(
        f"{path} holds no plain state_dict: {what}. Expected: names and tensors, or one such "
        "mapping among the keys; save the one that you mean alone."
    )


def _is_state(content: Any) -> bool:
    """Return whether an object is a non-empty mapping of names to tensors."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(k, str) and isinstance(t, Tensor) for k, t in content.items())
