"""The phases of a pruner inside of one ``trainer.train()`` of Hugging Face's Trainer.

A callback cannot do it: the Trainer makes its optimizer once, before any event of ``train()``, and
callbacks do not get the Trainer. So ``prune_with`` takes the Trainer. It attaches the pruner at
once, so that ``resume_from_checkpoint`` finds masks to load into, and gives each phase an optimizer
and a learning rate schedule that the Trainer makes by its own rules.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import nn

try:
    from transformers import Trainer, TrainerCallback
    from transformers.training_args import ParallelMode
except ImportError as error:
    raise ImportError(
        "prune_with needs the package transformers; pip install transformers"
    ) from error

from robust_plugin.pruning.optimizer_hook import innermost_optimizers
from robust_plugin.pruning.phase_run import ParamGroups, PhaseRun, phase_names
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.calls import explain_wrong_calls, user_level

__all__ = ["prune_with"]


@explain_wrong_calls
def prune_with(
    trainer: Trainer,
    make_pruner: Callable[[nn.Module], Pruner],
    *,
    epochs: Mapping[str, int],
    learning_rates: Mapping[str, float] | None = None,
) -> Pruner:
    """Attach a pruner to a Trainer's model; the next ``trainer.train()`` prunes and fine-tunes it.

    For each phase, ``trainer.create_optimizer`` makes an optimizer of what the phase trains, and
    the learning rate schedule begins anew. Scores and rates have no weight decay. At the end of
    ``train()`` the model is plain, with zeros. Embeddings stay dense.

    Checkpoints hold the weights under their dense names, and the masks;
    ``train(resume_from_checkpoint=True)`` continues with equal masks. In the prune phase the
    weights are saved without zeros, because pruned weights can come back; for a pruned copy of that
    moment, call ``model.save_pretrained(path, state_dict=dense_state_dict(model))``. With
    ``load_best_model_at_end``, the best model is chosen among those of the fine-tuning phase.

    Args:
        trainer: a Trainer that has not trained yet. Choose its optimizer by ``args.optim`` or
            ``optimizer_cls_and_kwargs``.
        make_pruner: function that attaches a pruner to a model and returns the pruner.
        epochs: number of epochs by name of the phase: ``"shrink"``, if the pruner has a schedule,
            ``"prune"``, if it learns, and ``"finetune"``. Their sum replaces
            ``args.num_train_epochs``. If ``args.max_steps`` is set, these steps are divided between
            the phases in proportion.
        learning_rates: learning rate by name of the phase; None for that of the Trainer. Scores
            often need a larger one than pre-trained weights.

    Returns:
        Pruner: the pruner, attached to ``trainer.model``.

    Raises:
        TypeError: if ``trainer`` is no Trainer, or ``make_pruner`` returns no pruner of its model.
        ValueError: if the Trainer has an optimizer already, makes its model itself (model_init),
            shards it (FSDP, DeepSpeed) or keeps DDP from finding unused parameters; if a phase is
            unknown or missing, or a number is not above 0.
    """
    _check_trainer(trainer)
    pruner = make_pruner(trainer.model)
    if not isinstance(pruner, Pruner) or pruner.model is not trainer.model:
        raise TypeError(
            f"make_pruner returned {pruner!r}; give a function that returns a pruner of the "
            "Trainer's model, such as lambda model: HarpPruner(model, density=0.1)."
        )
    legal, rates = phase_names(pruner, epochs, 1), dict(learning_rates or {})
    if set(rates) - set(legal):
        raise ValueError(f"learning_rates is {rates}; legal: rates of {' and '.join(legal)}.")
    if getattr(trainer.model, "peft_config", None):
        warnings.warn(
            "the Trainer saves the adapters of a peft model alone, without masks and weights, so "
            "that no checkpoint resumes. Call merge_and_unload before, or save model.state_dict().",
            stacklevel=user_level(),
        )
    trainer.add_callback(_Phases(trainer, pruner, epochs, rates))
    return pruner


class _Phases(TrainerCallback):  # type: ignore[misc]  # mypy does not read transformers
    """Begins the phases of a pruner during ``trainer.train()``, and finalizes it at the end."""

    def __init__(
        self,
        trainer: Trainer,
        pruner: Pruner,
        epochs: Mapping[str, int],
        learning_rates: Mapping[str, float],
    ) -> None:
        self.trainer, self.pruner = trainer, pruner
        self.epochs, self.learning_rates = dict(epochs), learning_rates
        self.runs: Iterator[PhaseRun] = iter(())
        self.phase = ""  # before and after train()
        self.steps: dict[str, int] = {}  # number of optimizer steps of each phase
        self.ends: dict[str, int] = {}  # number of optimizer steps until each phase ends
        self.trained: dict[nn.Parameter, bool] = {}
        self.stops = False
        if trainer.args.max_steps <= 0:
            trainer.args.num_train_epochs = sum(self.epochs.values())
        # No event of a callback lies between the loading of a checkpoint into the model and the
        # making of the optimizer, so methods of the Trainer are replaced until the end of train().
        self.create_optimizer, self.save_model = trainer.create_optimizer, trainer.save_model
        trainer.create_optimizer, trainer.save_model = self.first_optimizer, self.save

    def first_optimizer(self, _: nn.Module | None = None) -> Any:
        """Begin the first phase, or that of the loaded checkpoint, and return its optimizer."""
        trainer, steps = self.trainer, self.trainer.state.max_steps
        if steps == 0:
            raise ValueError(
                "trainer.train() makes the optimizer of each phase; call only that, with "
                "transformers 5.6 or newer."
            )
        per_epoch = max(1, steps // sum(self.epochs.values()))
        self.steps = {name: per_epoch * number for name, number in self.epochs.items()}
        names = [name for name in self.pruner.order if name in self.epochs]
        self.steps[names[-1]] += steps - sum(self.steps.values())  # a rest of max_steps
        self.ends = dict(zip(names, accumulate(self.steps[name] for name in names), strict=True))
        self._check_steps(trainer.state.global_step)
        trainer.optimizer = None
        self.runs = self.pruner.phases(
            self._make_optimizer, epochs=self.epochs, steps_per_epoch=per_epoch
        )
        next(self.runs)
        self.trained = {p: p.requires_grad for p in trainer.model.parameters()}
        if _is_ddp(trainer):
            # DDP is about to wrap the model for all phases, and must know all that they train.
            for parameter in set(self.trained) - self.pruner.frozen:
                parameter.requires_grad_(True)
        return trainer.optimizer

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the model under the names of its parameters, which ``train()`` loads them by.

        ``save_pretrained`` changes those of some architectures, such as ViT, to older names.
        """
        model = self.trainer.model
        if plain := getattr(model, "save_pretrained", None):
            model.save_pretrained = functools.partial(plain, save_original_format=False)
        try:
            self.save_model(*args, **kwargs)
        finally:
            vars(model).pop("save_pretrained", None)

    def _check_steps(self, step: int) -> None:
        """Raise a ValueError unless the pruner has made as many steps as the Trainer.

        It may have made fewer, because a step that a GradScaler skips does not count.
        """
        phase, own = self.pruner.phase_done
        own += self.ends[phase] - self.steps[phase] if phase in self.ends else 0
        lacks = step > 0 and any(mask.was_dense for mask in self.pruner.masks)
        if own > step or (own == 0) != (step == 0) or lacks:
            raise ValueError(
                f"the Trainer begins at step {step}, and the pruner has made {own} steps: the "
                "checkpoint lacks masks, or the model was trained since. Give train() a checkpoint "
                "that was saved after prune_with, or make model and Trainer anew."
            )

    def _make_optimizer(self, groups: ParamGroups) -> torch.optim.Optimizer:
        """Give the Trainer an optimizer and a schedule for what ``set_phase`` has returned."""
        trainer, former = self.trainer, self.trainer.optimizer
        self.phase, trainer.optimizer, trainer.lr_scheduler = self.pruner.phase, None, None
        made: torch.optim.Optimizer = self.create_optimizer()
        if self.phase == "prune":  # else the Trainer decays scores, because it goes by names
            own = set(groups[0]["params"])
            for group in made.param_groups:
                group["params"] = [p for p in group["params"] if p not in own]
            made.add_param_group(groups[0])
        if self.phase in self.learning_rates:
            for group in made.param_groups:
                group["lr"] = self.learning_rates[self.phase]
        if former is not None:
            # The running loop keeps its optimizer, which accelerate has wrapped and remembers.
            trainer.optimizer = former
            (inner,) = innermost_optimizers(former)
            if "prune" in self.epochs:  # else both phases train the same parameters
                inner.state.clear()
            inner.param_groups[:] = made.param_groups
            made = inner
        trainer.create_scheduler(num_training_steps=self.steps[self.phase], optimizer=made)
        return made

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Freeze again what the phase does not train, after DDP has wrapped the model."""
        for parameter, trains in self.trained.items():
            parameter.requires_grad_(trains)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the next phase after the last step of the present one."""
        if self.phase == "":  # a second train()
            return
        if self.ends[self.phase] <= state.global_step < max(self.ends.values()):
            next(self.runs)
            self.trainer.callback_handler.lr_scheduler = self.trainer.lr_scheduler
            # A network of an earlier phase is none of those to choose the best one from.
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note whether training stops for a reason that is no evaluation."""
        self.stops = control.should_training_stop

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep an early stop from ending a phase before fine-tuning: its length is fixed."""
        if self.phase not in ("", "finetune"):
            control.should_training_stop = self.stops

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Finalize the pruner, and give the Trainer its methods back."""
        if self.phase == "":  # a second train()
            return
        if self.phase != "finetune" and "finetune" in self.epochs:
            warnings.warn(
                f"training ended in the {self.phase} phase, so that the pruned network was not "
                "fine-tuned.",
                stacklevel=user_level(),
            )
        self.pruner.finalize()
        self.phase = ""
        del self.trainer.create_optimizer, self.trainer.save_model


def _check_trainer(trainer: Trainer) -> None:
    """Raise an error unless phases can run in this Trainer."""
    if not isinstance(trainer, Trainer):
        raise TypeError(f"trainer is a {type(trainer).__name__}; give a transformers.Trainer.")
    why = None
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        why = (
            "has an optimizer already, and each phase needs its own; make a new Trainer without "
            "optimizers=, and choose by args.optim or optimizer_cls_and_kwargs="
        )
    elif trainer.model_init is not None:
        why = "makes a new model when train() begins; give it model= instead of model_init="
    elif trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        why = "shards the weights, and masks are chosen over whole weights; train with DDP"
    elif _is_ddp(trainer) and not trainer.accelerator.ddp_handler.find_unused_parameters:
        why = (
            "wraps the model once for all phases, and no phase trains everything; set "
            "ddp_find_unused_parameters=True in its arguments"
        )
    if why is not None:
        raise ValueError(f"the Trainer {why}.")


def _is_ddp(trainer: Trainer) -> bool:
    return bool(trainer.args.parallel_mode is ParallelMode.DISTRIBUTED)
