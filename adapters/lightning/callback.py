"""The callback that prunes a LightningModule inside one fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robust_plugin.adapters.lightning.phase_change import (
    callbacks_of,
    forget_best,
    keep_trained,
    make_optimizers,
    steps_per_epoch,
)
from robust_plugin.masks.detach import dense_state_dict
from robust_plugin.masks.masked_layer import is_of_masks
from robust_plugin.pruning.phase_run import count_steps, phase_names, take_over_state
from robust_plugin.pruning.phases import PhaseName
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.calls import explain_wrong_calls, user_level

_MASKS = "pruner_masks"  # the place of the masks in a checkpoint of the fine-tuning phase


@explain_wrong_calls
class PruningCallback(Callback):
    """Runs the phases of a pruner inside one fit, and finalizes the network when fit ends.

    At the start of each phase, ``configure_optimizers`` of the LightningModule is called again, and
    DDP wraps the module again. Meanwhile ``trainer.max_epochs`` is the number of epochs of the
    phase, so that a learning rate schedule spans the phase. Each param group keeps those of its
    parameters that the phase trains. Scores and rates go into the group that had most of the
    weights, and this group has no weight decay in the prune phase.

    ``EarlyStopping``, and ``ModelCheckpoint`` with a monitored quantity, begin anew with
    each phase; an early stop ends no other phase than fine-tuning. Checkpoints resume by
    ``trainer.fit(ckpt_path=...)``. In those of the fine-tuning phase, ``state_dict`` is that of the
    network without a pruner; in those of the other phases, it has the masks too.

    Args:
        make_pruner: function of the LightningModule that returns a pruner attached to it, or to one
            of its submodules, such as ``lambda module: HarpPruner(module, density=0.1)``.
        epochs: number of epochs by name of the phase: ``"shrink"``, if the pruner has a schedule,
            ``"prune"``, if it learns, and ``"finetune"``. Fit ends after their sum.
        steps_per_epoch: number of optimizer steps per epoch; None asks the trainer. Give it if the
            train loader has no length, or ``training_step`` steps the optimizers itself.

    Raises:
        TypeError: if ``make_pruner`` is no function.
        ValueError: when fit begins, if ``make_pruner`` returns no pruner of the module, the
            trainer's limits are shorter than the phases, or its strategy shards weights.

    >>> from robust_plugin import HarpPruner
    >>> pruning = PruningCallback(
    ...     lambda module: HarpPruner(module, density=0.1), epochs={"prune": 5, "finetune": 20}
    ... )
    >>> trainer = Trainer(max_epochs=25, callbacks=[pruning], logger=False)
    """

    def __init__(
        self,
        make_pruner: Callable[[LightningModule], Pruner],
        *,
        epochs: Mapping[str, int],
        steps_per_epoch: int | None = None,
    ) -> None:
        if not callable(make_pruner) or isinstance(make_pruner, nn.Module):
            raise TypeError(
                f"make_pruner is a {type(make_pruner).__name__}; give a function that is called "
                "when fit begins, such as lambda module: HarpPruner(module, density=0.1)."
            )
        self._make_pruner = make_pruner
        self._given = epochs
        self._steps_per_epoch = steps_per_epoch
        self._pruner: Pruner | None = None
        self._epochs: dict[str, int] = {}  # of this fit
        self._steps: int | None = None  # of an epoch of this fit
        self._min_epochs: int | None = None

    @property
    def pruner(self) -> Pruner:
        """The pruner, which exists from the start of fit on; before that, a ValueError."""
        if self._pruner is None:
            raise ValueError("the pruner is attached when trainer.fit begins; read it after that.")
        return self._pruner

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the pruner, before the state of a checkpoint is loaded."""
        if stage != "fit":
            return
        _check_trainer(trainer, self)
        if is_overridden("configure_model", pl_module):
            pl_module.configure_model()
        if self._pruner is None or self._pruner.model not in set(pl_module.modules()):
            self._pruner = _attach(self._make_pruner, pl_module)
        elif self._pruner.phase == "finalized":
            raise ValueError(
                "this callback has pruned the network already; train on with a Trainer without it."
            )
        names = phase_names(self._pruner, self._given, self._steps_per_epoch or 1)
        self._epochs, self._steps = dict(self._given), self._steps_per_epoch
        loop = trainer.fit_loop
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # its few batches, in each phase
            self._epochs, self._steps = dict.fromkeys(names, 1), None
            loop.max_epochs = loop.epoch_loop.max_steps = -1
            said = "fast_dev_run prunes this module too; make a new one for the real fit."
            warnings.warn(said, stacklevel=user_level())
        total = sum(self._epochs.values())
        if -1 < (loop.max_epochs or 0) < total:
            raise ValueError(
                f"max_epochs is {loop.max_epochs}, and the phases {self._epochs} take "
                f"{total} epochs; give Trainer(max_epochs={total}), or fewer epochs per phase."
            )
        self._min_epochs, loop.max_epochs = loop.min_epochs, total
        before = total - self._epochs.get("finetune", 0)
        if before:  # an early stop waits for fine-tuning
            loop.min_epochs = max(loop.min_epochs or 0, min(before + 1, total))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first phase, or the phase of the checkpoint that was loaded."""
        self._steps = self._steps or steps_per_epoch(trainer)
        needed = self._steps * sum(self._epochs.values())
        if -1 < trainer.max_steps < needed:
            raise ValueError(
                f"max_steps is {trainer.max_steps}, and the phases take {needed} optimizer steps; "
                "give Trainer(max_steps=-1)."
            )
        begun = self.pruner.phase
        self._begin(trainer, self._phase_of(0) if begun == "attached" else begun)  # type: ignore[arg-type]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase after the epochs of the present one."""
        phase = self._phase_of(trainer.current_epoch)
        if phase != self.pruner.phase:
            self._begin(trainer, phase)
            forget_best(trainer)
            if phase == "finetune":  # from here on an early stop may end fit
                trainer.fit_loop.min_epochs = self._min_epochs

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin the next phase if no ``on_train_epoch_start`` came, as after some resumes."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn the masked network into the plain one; averages of weights are copied by now."""
        for average in self._averages(trainer):
            self.pruner.finalize(average)
        self.pruner.finalize()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the pruner, for checkpoints."""
        return {} if self._pruner is None else {"pruner": self._pruner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue in the phase of a checkpoint, whose network is loaded by now."""
        if self._pruner is not None and self._pruner.phase != "finalized":
            self._pruner.load_state_dict(state_dict["pruner"])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """In fine-tuning, write the state of the network without a pruner, and the masks apart."""
        if self._pruner is None or self._pruner.phase == "finalized":
            return
        averages = self._averages(trainer)
        for average in averages:  # its masks are of the moment when it was made
            self._pruner.lend_masks(average)
        if self._pruner.phase == "finetune" and not averages:
            state = checkpoint["state_dict"]
            masks = {name: each for name, each in state.items() if is_of_masks(name)}
            dense = dense_state_dict({n: t for n, t in state.items() if isinstance(t, Tensor)})
            checkpoint["state_dict"] = {n: dense.get(n, state[n]) for n in state if n not in masks}
            checkpoint[_MASKS] = masks

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the masks of a checkpoint from which fit continues."""
        fits = trainer.state.fn == "fit"
        if fits and self.state_key not in checkpoint["callbacks"]:
            raise ValueError(
                "the checkpoint was written without PruningCallback, so its epochs are no phases; "
                "load it by load_from_checkpoint, and call fit without ckpt_path."
            )
        if fits and _MASKS in checkpoint:
            state = {**checkpoint["state_dict"], **checkpoint[_MASKS]}
            pl_module.load_state_dict(state, strict=pl_module.strict_loading)

    def _averages(self, trainer: Trainer) -> list[nn.Module]:
        """Return the copies of the network in Lightning's WeightAveraging callbacks."""
        modules = trainer.lightning_module.named_modules()
        place = next(name for name, each in modules if each is self.pruner.model)
        copies = [getattr(each, "_average_model", None) for each in callbacks_of(trainer)]
        return [e.module.get_submodule(place) for e in copies if isinstance(e, AveragedModel)]

    def _phase_of(self, epoch: int) -> PhaseName:
        """Return the phase of an epoch, counted from the start of fit."""
        names = [name for name in self.pruner.order if name in self._epochs]
        ends = accumulate(self._epochs[name] for name in names)
        return next((name for name, end in zip(names, ends, strict=True) if epoch < end), names[-1])

    def _begin(self, trainer: Trainer, phase: PhaseName) -> None:
        """Begin a phase."""
        former = list(trainer.strategy.optimizers)
        continues = self.pruner.phase == "shrink" and phase == "finetune"
        groups = self.pruner.set_phase(phase)
        optimizers = make_optimizers(trainer, self._epochs[phase])
        keep_trained(optimizers, self.pruner.model, groups, prune=phase == "prune")
        if continues:  # both phases train the same parameters
            take_over_state(former, optimizers)
        if phase == "finetune":
            count_steps(self.pruner, optimizers)
        else:
            self.pruner.follow(optimizers, epochs=self._epochs[phase], steps_per_epoch=self._steps)


def _check_trainer(trainer: Trainer, callback: PruningCallback) -> None:
    """Raise an error if masks do not work with the trainer's strategy or other callbacks."""
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"the trainer is of {type(trainer).__module__.partition('.')[0]}; import Trainer and "
            "LightningModule from lightning.pytorch, as PruningCallback does."
        )
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or strategy.restore_checkpoint_after_setup:
        raise ValueError(
            f"the strategy is {type(strategy).__name__}, and masks are chosen over whole weights; "
            "legal: a single device, or 'ddp'. Shard the plain network that fit leaves."
        )
    every = callbacks_of(trainer)
    for other in every[: every.index(callback)]:
        if getattr(other, "_average_model", None) is not None:
            raise ValueError(
                f"{type(other).__name__} copies the network when fit begins, and the copy needs "
                "masks; put PruningCallback before it in the list of callbacks."
            )


def _attach(make_pruner: Callable[[LightningModule], Pruner], module: LightningModule) -> Pruner:
    """Return the pruner that a function attaches to a module or one of its submodules."""
    pruner = make_pruner(module)
    if not isinstance(pruner, Pruner) or pruner.model not in set(module.modules()):
        raise ValueError(
            f"make_pruner returned a {type(pruner).__name__} that is not attached to the "
            "LightningModule; return a pruner that is attached to the function's argument or to a "
            "submodule of it, as lambda module: HarpPruner(module, density=0.1) does."
        )
    return pruner
