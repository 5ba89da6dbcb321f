"""Hugging Face accelerate in the recipes: several processes, bfloat16 and trackers.

The Accelerator wraps the network (DistributedDataParallel, autocast), lets the processes exchange
gradients only once per optimizer step, and sends values to a tracker (TensorBoard or Weights &
Biases). Three parts of accelerate are not used:

- Its optimizer wrapper, because it has no hooks, and the pruner updates its masks in a hook that
  runs after each optimizer step. The wrapper is needed only for the gradient scaler of fp16, which
  the recipes do not offer.
- Its data loaders, because they repeat points to fill the last batch, and give all processes the
  same weight even if their numbers of points differ.
- Its gradient accumulation, because it divides the loss by the number of micro-batches, even if
  they have different sizes.
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

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # tracker: the package it needs

# Attributes of a network that replace its own forward: accelerate's autocast, and torch.compile.
_REPLACEMENTS = ("forward", "_compiled_call_impl")


class Acceleration:
    """Wrapper around accelerate's Accelerator for one run.

    Args:
        config: settings of the run; only precision, compile and tracker are used.
        device: device that the run computes on.
        folder: folder of the run; TensorBoard's files are written to ``tensorboard/`` in it.
    """

    def __init__(self, config: RecipeConfig, device: torch.device, folder: Path) -> None:
        self.config, self.folder = config, folder
        # accelerate keeps precision and device for the whole process, which may train several runs.
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            cpu=device.type == "cpu",
            device_placement=False,  # the network is already on the device of the run
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(folder),
            # Buffers are not broadcast at each forward pass. Masks are as large as the weights and
            # the same in all processes; the running statistics are averaged after each step.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self._tracking = False

    @contextmanager
    def prepared(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the context, a network trains in the run's precision and in several processes.

        The context yields the wrapped network, for the training steps. Forward passes of ``model``
        itself, as in attacks and validation, use the same precision. Both are compiled if the
        settings say so. At the end of the context, ``model`` is as it was before.

        Args:
            model: network to train. If it has a pruner, call the pruner's ``set_phase`` first, and
                use a context of its own for each phase.
        """
        forward = model.__dict__.get("forward")
        with warnings.catch_warnings():
            # accelerate uses the old name of torch's option forward_sync_buffers.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            prepared = self._accelerator.prepare_model(model)
        if self.config.compile:
            # torch keeps at most eight compiled versions of one forward, and runs later versions
            # uncompiled. Each phase needs versions of its own: for training, the attack, its
            # reference, validation and a short last batch.
            torch.compiler.reset()
            model.compile()
        try:
            yield prepared
        finally:
            self._accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            # accelerate leaves these attributes on the network; they would break the next phase.
            for name in (*_REPLACEMENTS, "_is_accelerate_prepared"):
                model.__dict__.pop(name, None)
            if forward is not None:
                model.__dict__["forward"] = forward
            self._accelerator._models.clear()

    @contextmanager
    def bare(self, model: nn.Module) -> Iterator[None]:
        """Within the context, forward passes of a network are in float32 and not compiled.

        Args:
            model: network that was given to ``prepared``, whose context has not ended yet.
        """
        removed = {name: vars(model).pop(name) for name in _REPLACEMENTS if name in vars(model)}
        try:
            yield
        finally:
            vars(model).update(removed)

    def gathering(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context manager in which gradients are not exchanged between the processes.

        Each process adds up the gradients of its own backward passes.

        Args:
            model: wrapped network that ``prepared`` yields.
        """
        context: AbstractContextManager[None] = self._accelerator.no_sync(model)
        return context

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a scalar loss and add them to the ``grad`` of the parameters."""
        self._accelerator.backward(loss)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values to the tracker, if there is one; only the first process does so.

        Args:
            values: measured values of one epoch by name.
            step: index of the epoch, counted over all stages of the run.
        """
        if self.config.tracker == "none" or not is_first():
            return
        if not self._tracking:
            # The name depends on the folder alone, so that a continued run adds to its own log.
            name = self.folder.resolve().name
            number = f"{name}-{seed_of(self.folder.resolve()):016x}"
            wandb = {"name": name, "id": number, "resume": "allow", "dir": str(self.folder)}
            self._accelerator.init_trackers(
                "tensorboard" if self.config.tracker == "tensorboard" else "robust-plugin",
                init_kwargs={"wandb": wandb},
            )
            if self.config.tracker == "wandb":  # TensorBoard would show settings as a separate run
                tracker = self._accelerator.get_tracker("wandb", unwrap=True)
                tracker.config.update(as_plain(self.config), allow_val_change=True)
            self._tracking = True
        self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Close the tracker, if one was started."""
        for tracker in self._accelerator.trackers if self._tracking else ():
            tracker.finish()
        self._accelerator.trackers.clear()
        self._tracking = False


def check_tracker(name: str) -> None:
    """Check that the package of a tracker is installed.

    Args:
        name: none, tensorboard or wandb.

    Raises:
        ImportError: if the package is not installed; the message names it.
    """
    package = TRACKERS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f"tracker is {name!r}, which is not installed: pip install {package}")
