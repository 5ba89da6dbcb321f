"""Hugging Face accelerate in the recipes: processes, bfloat16 and trackers.

The Accelerator wraps the network (DistributedDataParallel, autocast), holds back gradients between
micro-batches, and speaks to TensorBoard and Weights & Biases. Three of its pieces are not used:

- its optimizer wrapper has no hooks, and the pruner follows steps by a hook; without fp16 there is
  no scaler for it to call;
- its data loaders pad the last batch by repeating points, and give unequal shares equal weight;
- its count of accumulated micro-batches divides the loss by their number, whatever their size.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.runtime.process_group import is_first
from robust_plugin.runtime.random import seed_of

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # and the package each needs

# What computes in place of the network's own forward: accelerate's autocast, and torch.compile.
_HUNG = ("forward", "_compiled_call_impl")


class Acceleration:
    """What accelerate does for one run.

    Args:
        config: precision, compile and tracker.
        device: where the run computes.
        folder: of the run; TensorBoard's files go to ``tensorboard/`` in it.
    """

    def __init__(self, config: RecipeConfig, device: torch.device, folder: Path) -> None:
        self.config, self.folder = config, folder
        # One process may train several runs, and accelerate keeps precision and device for good.
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            cpu=device.type == "cpu",
            device_placement=False,  # the run has placed the network
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(folder),
            # Not the buffers at each forward: masks are equal everywhere and as large as the
            # weights, and the statistics of BatchNorm are averaged after each step.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self._tracking = False

    @contextmanager
    def prepared(self, model: nn.Module) -> Iterator[nn.Module]:
        """Wrap a network for one phase, after ``set_phase``; inside, it is trained by the wrapper.

        The network's own forward passes, those of attacks and of validation, run in the same
        precision and compiled alike; afterwards it is as it was.
        """
        forward = model.__dict__.get("forward")
        with warnings.catch_warnings():
            # accelerate's name for what newer versions of torch call forward_sync_buffers.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            prepared = self._accelerator.prepare_model(model)
        if self.config.compile:
            # Of one forward torch keeps eight versions, and runs what comes later uncompiled. Each
            # phase has its own: of training, attack, its reference, validation, a short last batch.
            torch.compiler.reset()
            model.compile()
        try:
            yield prepared
        finally:
            self._accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            # What remains of it on the network itself, where the next phase would stumble over it.
            for name in (*_HUNG, "_is_accelerate_prepared"):
                model.__dict__.pop(name, None)
            if forward is not None:
                model.__dict__["forward"] = forward
            self._accelerator._models.clear()

    @contextmanager
    def bare(self, model: nn.Module) -> Iterator[None]:
        """Let a network compute in float32 and uncompiled again inside, within ``prepared``."""
        hung = {name: vars(model).pop(name) for name in _HUNG if name in vars(model)}
        try:
            yield
        finally:
            vars(model).update(hung)

    def gathering(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients stay in this process and add up; ``model`` is the wrapper."""
        held: AbstractContextManager[None] = self._accelerator.no_sync(model)
        return held

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        self._accelerator.backward(loss)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values to the tracker, if there is one; the first process speaks for all."""
        if self.config.tracker == "none" or not is_first():
            return
        if not self._tracking:
            # The folder names the run: an interrupted one goes on in the same place.
            name = self.folder.resolve().name
            number = f"{name}-{seed_of(self.folder.resolve()):016x}"
            wandb = {"name": name, "id": number, "resume": "allow", "dir": str(self.folder)}
            self._accelerator.init_trackers(
                "tensorboard" if self.config.tracker == "tensorboard" else "robust-plugin",
                init_kwargs={"wandb": wandb},
            )
            if self.config.tracker == "wandb":  # TensorBoard makes a run of its own of settings
                tracker = self._accelerator.get_tracker("wandb", unwrap=True)
                tracker.config.update(as_plain(self.config), allow_val_change=True)
            self._tracking = True
        self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """End the tracker's run."""
        for tracker in self._accelerator.trackers if self._tracking else ():
            tracker.finish()
        self._accelerator.trackers.clear()
        self._tracking = False


def check_tracker(name: str) -> None:
    """Raise unless a tracker's package is there.

    Raises:
        ImportError: naming what to install.
    """
    package = TRACKERS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f"tracker is {name!r}, which is not installed: pip install {package}")
