"""Checkpoints: one safetensors file with tensors and JSON, written atomically.

No pickle is read or written, so a checkpoint cannot run code when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.masks.detach import tensors_of
from robust_plugin.masks.masked_layer import is_of_masks
from robust_plugin.pruning import saving
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.files import read_tensors, write_tensors
from robust_plugin.runtime.tables import listed
from robust_plugin.runtime.values import check_model, check_path


@explain_wrong_calls
@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file that was read.
        tensors: tensors by name: ``model/<name>``, ``optimizer/<index of parameter>/<key>``, the
            states ``rng`` of the CPU's random generator and, if a GPU was in use when the file was
            written, ``rng_cuda`` of the GPU's.
        content: the JSON part: ``pruner``, the state of the pruner or None; ``optimizer``, the
            param groups and further state of the optimizer or None; ``meta``, what the caller of
            ``save`` added.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any]

    def __repr__(self) -> str:
        """Return one line: the file, the number of tensors, and which states it holds."""
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        states = [name for name in ("pruner", "optimizer") if self.content.get(name) is not None]
        return (
            f"Checkpoint({listed([repr(self.path.name)])}, {len(self.tensors)} tensors of "
            f"{numbers:,} numbers, {' and '.join(['model', *states])})"
        )

    @property
    def meta(self) -> dict[str, Any]:
        """What the caller passed to ``save`` as ``meta``."""
        return dict(self.content["meta"])

    def restore(
        self,
        *,
        model: nn.Module | None = None,
        pruner: Pruner | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        rng: bool = False,
    ) -> None:
        """Load the saved states into the given objects.

        Everything is checked first; if a check fails, nothing has changed. An object that is None
        is not loaded.

        Args:
            model: a model of the same architecture, with a pruner attached if the saved model had
                one.
            pruner: the pruner that is attached to ``model``, with the same settings as the saved
                pruner.
            optimizer: an optimizer over the same parameters. If it is built with the parameters
                that ``Pruner.set_phase`` returns, restore model and pruner first, then build it and
                restore it with a second call.
            rng: whether to set torch's global random generators too: that of the CPU, and that of
                the current GPU if there is one now and there was one when the file was written.

        Raises:
            ValueError: naming what the checkpoint lacks, or what differs from the given object.
        """
        _check_kinds(model, pruner, optimizer)
        states = self._part("model/")
        if model is not None:
            self._check_model(model, states)
        if pruner is not None:
            if self.content["pruner"] is None:
                raise ValueError(
                    f"{self.path} holds no pruner; leave pruner= out, or save(...) it too."
                )
            pruner.check_state(self.content["pruner"])
        if optimizer is not None:
            optimizer_state = self._optimizer_state(optimizer)
        if model is not None:
            if pruner is not None:
                saving.prepare(pruner._state, self.content["pruner"])
            model.load_state_dict(states)
        if pruner is not None:
            pruner.load_state_dict(self.content["pruner"])
        if optimizer is not None:
            optimizer.load_state_dict(optimizer_state)
        if rng:
            torch.set_rng_state(self.tensors["rng"])
            if "rng_cuda" in self.tensors and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.tensors["rng_cuda"])

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }

    def _check_model(self, model: nn.Module, states: Mapping[str, Tensor]) -> None:
        ours, saved = (
            # The bytes of a mask's state differ in number.
            {
                name: None if is_of_masks(name) and t.dtype == torch.uint8 else tuple(t.shape)
                for name, t in each.items()
            }
            for each in (tensors_of(model.state_dict()), states)
        )
        for name in sorted(ours.keys() | saved.keys()):
            if ours.get(name, "absent") != saved.get(name, "absent"):
                hint = (
                    " Masks are in one of them alone: attach the pruner that the file was written "
                    "with, or none."
                    if is_of_masks(name)
                    else ""
                )
                raise ValueError(
                    f"{self.path} is of another model: {name} is {saved.get(name, 'absent')} in "
                    f"the file and {ours.get(name, 'absent')} here.{hint}"
                )

    def _optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        saved = self.content["optimizer"]
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        theirs = [len(group["params"]) for group in saved["groups"]] if saved else None
        if theirs != sizes:
            if not saved:
                raise ValueError(
                    f"{self.path} holds no optimizer; leave optimizer= out, or save(...) it too."
                )
            raise ValueError(
                f"{self.path} holds an optimizer of {theirs} parameters in its groups; this one "
                f"has {sizes}. Build it of the same parameters in the same phase."
            )
        state: dict[int, dict[str, Any]] = {
            int(key): dict(values) for key, values in saved["state"].items()
        }
        for name, tensor in self._part("optimizer/").items():
            index, key = name.split("/", 1)
            state.setdefault(int(index), {})[key] = tensor
        return {"state": state, "param_groups": saved["groups"]}


@explain_wrong_calls
def save(
    path: str | Path,
    *,
    model: nn.Module,
    pruner: Pruner | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint file with the given states and torch's random generators.

    The file is replaced at once: if the process is killed while it writes, the old file remains.

    Args:
        path: the file; its folder must exist.
        model: a model with or without a pruner; its state_dict is saved as it is.
        pruner: the pruner that is attached to the model; None to save no pruner.
        optimizer: the optimizer whose state is saved; None to save no optimizer.
        meta: further information that JSON can hold, such as epoch, configuration, threat model,
            seeds and versions; ``Checkpoint.meta`` returns it.

    Raises:
        ValueError: if the folder does not exist, JSON cannot hold a value, or the state of the
            model holds something that is no tensor.
    """
    _check_kinds(check_model(model), pruner, optimizer)
    if not (meta is None or isinstance(meta, Mapping)):
        raise TypeError(f"meta is {meta!r}; give a dict, as {{'epoch': 3}}.")
    tensors = {f"model/{name}": t for name, t in tensors_of(model.state_dict()).items()}
    content: dict[str, Any] = {"meta": dict(meta or {}), "pruner": None, "optimizer": None}
    if pruner is not None:
        content["pruner"] = pruner.state_dict()
    if optimizer is not None:
        state = optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value
                else:
                    plain.setdefault(str(index), {})[key] = value
        content["optimizer"] = {"groups": state["param_groups"], "state": plain}
    tensors["rng"] = torch.get_rng_state()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors["rng_cuda"] = torch.cuda.get_rng_state()
    write_tensors(path, tensors, content)


@explain_wrong_calls
def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint file; no model, pruner or optimizer changes (see ``Checkpoint.restore``).

    Raises:
        ValueError: if the file is missing, truncated, or no checkpoint written by ``save``.
    """
    path = check_path(path)
    tensors, content = read_tensors(path)
    if "meta" not in content:
        raise ValueError(f"{path} is a safetensors file, but no checkpoint of robust_plugin.")
    return Checkpoint(path, tensors, content)


def _check_kinds(model: object, pruner: object, optimizer: object) -> None:
    """Raise a TypeError unless each argument is of its kind or None."""
    if model is not None:
        check_model(model)
    if not (pruner is None or isinstance(pruner, Pruner)):
        raise TypeError(f"pruner is a {type(pruner).__name__}; give a Pruner, such as HydraPruner.")
    if not (optimizer is None or isinstance(optimizer, torch.optim.Optimizer)):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer.")
