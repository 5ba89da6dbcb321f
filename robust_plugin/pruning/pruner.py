"""The Pruner: masks from scores and rates, each fixed or learned, on any model.

A score ranks a weight (or channel) within its layer, and a rate is the density of a layer. The
methods of three papers are combinations of the two:

|                | rates uniform    | rates given (ERK, LAMP) | rates learned  |
|----------------|------------------|-------------------------|----------------|
| scores fixed   | Sehwag 2019, LWM | magnitude at good rates | HARP rate-only |
| scores learned | HYDRA            | HARP score-only         | HARP           |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_plugin.budget.budget import Unit
from robust_plugin.budget.control import Control, FixedRates, Schedule
from robust_plugin.budget.density_logits import densities as rate_densities
from robust_plugin.budget.density_logits import rate_logits
from robust_plugin.budget.rates import Rates
from robust_plugin.masks import detach
from robust_plugin.masks.group_checks import check_groups
from robust_plugin.masks.groups import Group, Groups
from robust_plugin.masks.prunable import refuse_wrapped, warn_of_uncovered, weight_groups
from robust_plugin.masks.transformed import refuse_transformed
from robust_plugin.pruning import optimizer_hook, phases
from robust_plugin.pruning.attachment import attach_masks, check_choices
from robust_plugin.pruning.optimizer_hook import Following, check_holds
from robust_plugin.pruning.phases import Learnable, Phase
from robust_plugin.pruning.scores import Scores
from robust_plugin.pruning.state import refuse_ended, refuse_foreign, refuse_other
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import check_ranks


@explain_wrong_calls
class Pruner:
    """Attaches masks to a model and learns which weights or channels they keep.

    Args:
        model: the network, pre-trained and not wrapped (no DDP, no torch.compile). Masks are
            attached to it in place.
        density: k, the share of the dense network that is kept, 0 < k <= 1, counted as ``budget``
            says; None if a pattern or a dict of rates implies it.
        learn: what the prune phase trains: any of ``"scores"`` and ``"rates"`` (layer densities).
        scores: the initial scores: a name, a function of the weight, or tensors by parameter name.
        rates: the density of each layer: ``"uniform"``, ``"erk"``, ``"lamp"``, ``"global"``, a
            function, or densities by parameter name. Learned densities start from these.
        budget: what ``density`` is a share of: ``"params"``, the prunable weights; ``"flops"``,
            their multiply-adds; or, for groups of channels only, ``"channels"``, which allows the
            FLOPs of the network that keeps this share of the channels of each group. For groups of
            channels, all three count the whole network that is left.
        control: how learned layer densities meet the budget: ``"held"`` meets it exactly at every
            step, with a budget that falls to the target during the phase; ``"hinge"`` is the
            penalty of the HARP paper (see ``budget_penalty``).
        gamma_step: growth of gamma, the factor of the hinge penalty, per epoch of 391 steps.
        pattern: an n:m pattern such as ``"2:4"``, given instead of a density; or ``"n:4"`` with
            the letter n, given together with a density: each layer keeps n of every 4 weights, with
            its own n near its density, and all layers together keep at most the budget.
        groups: the groups of weights or channels, each with one mask (from ``channel_groups``,
            say); None for one group per weight.
        round_to: block size in channels, such as 16 or 8, the number of floats that the CPU
            computes at once with AVX-512 or AVX2. A group whose number of channels it divides keeps
            whole blocks, at least one.
        exclude: layers, or names of layers, that stay dense.
        example_inputs: inputs of one forward pass, needed for budgets in FLOPs and channels; None
            takes those that ``channel_groups`` was given.

    Attributes:
        groups: the groups of weights or channels that are pruned.
        left_dense: names of the weights that stay dense because the pattern does not fit them.
        masks: scores, rate logit and mask of each group, in the order of ``groups``.
        budget: the largest cost that may be kept, and the cost of each weight or channel.
        phase: ``"attached"``, ``"prune"``, ``"finetune"`` or ``"finalized"``.
        example_inputs: inputs of one forward pass, or None.
        frozen: parameters that were frozen before the pruner was attached; they stay frozen.

    Raises:
        TypeError: if the model is no nn.Module, or round_to no integer.
        ValueError: naming an illegal value and what is legal; the model is then unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float | None = None,
        *,
        learn: Collection[Learnable] = (),
        scores: Scores = "scaled_magnitude",
        rates: Rates = "uniform",
        budget: Unit = "params",
        control: Control = "held",
        gamma_step: float = 0.01,
        pattern: str | None = None,
        groups: Sequence[Group] | None = None,
        round_to: int = 1,
        exclude: Collection[str | nn.Module] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        refuse_wrapped(model)
        self.pattern = check_choices(model, learn, control, pattern)
        if groups is None:
            found = weight_groups(model, exclude)
            if not exclude:
                warn_of_uncovered(model, found)
        else:
            found = check_groups(model, groups, exclude)
        refuse_transformed(member for group in found for member in group.members)
        if example_inputs is None and isinstance(groups, Groups):
            example_inputs = groups.example_inputs
        self.model = model
        self.example_inputs = example_inputs
        self.learn = frozenset(learn)
        self.round_to = round_to
        self.frozen = frozenset(p for p in model.parameters() if not p.requires_grad)
        attached = attach_masks(
            model,
            found,
            density,
            learn=self.learn,
            scores=scores,
            rates=rates,
            unit=budget,
            control=control,
            gamma_step=gamma_step,
            pattern=self.pattern,
            round_to=round_to,
            example_inputs=example_inputs,
        )
        self.groups, self.left_dense = attached.groups, attached.left_dense
        self.budget, self.masks, self.control = attached.budget, attached.masks, attached.control
        self._plan, self._settings = attached.plan, attached.settings
        self.schedule = Schedule()
        self.phase: Phase = "attached"
        self._following = Following()
        # Whether the user has called update_masks, and budget_penalty in the prune phase.
        self._updated = self._penalised = False
        for mask in self.masks:
            mask.waits = bool(self.learn)

    def __repr__(self) -> str:
        """Return one line with the phase, the number of groups, and how much is kept."""
        return (
            f"{type(self).__name__}(phase={self.phase!r}, {len(self.groups)} groups, keeps "
            f"{self.kept:,} of {self.budget.full:,}, budget {self.budget.density:.4g})"
        )

    @property
    def kept(self) -> int:
        """The cost of what the masks keep now, in parameters or FLOPs, as the budget counts it."""
        return int(self.budget.cost([int(mask.kept) for mask in self.masks]))

    @property
    def densities(self) -> dict[str, float]:
        """The share of its weights or channels that each group keeps now, by name of the group."""
        return {
            group.name: int(mask.kept) / group.size
            for group, mask in zip(self.groups, self.masks, strict=True)
        }

    def budget_penalty(self) -> Tensor:
        """Return the penalty to add to the loss in the prune phase, a scalar.

        With ``control="hinge"`` and learned rates it is gamma(epoch) L_hw, HARP equation 4, where
        L_hw is by how much the densities exceed the budget. Otherwise it is zero.

        Raises:
            ValueError: if the pruner learns and its prune phase has not begun.
        """
        phases.check_trains(self.phase, learns=bool(self.learn))
        self._penalised = True
        control = self.control if self.phase == "prune" else FixedRates()
        return control.penalty(self.masks, self.schedule)

    def update_masks(self) -> None:
        """Compute every mask anew from its scores and the number of weights or channels to keep.

        After ``follow``, each optimizer step calls this. Call it yourself after you have written
        scores by hand.
        """
        self._updated = True
        self._choose()

    def _choose(self) -> None:
        counts = self.control.counts(self.masks, self.schedule)
        for mask, count in zip(self.masks, counts, strict=True):
            mask.choose(count)

    def set_phase(self, phase: Literal["prune", "finetune"]) -> list[dict[str, Any]]:
        """Begin a phase: freeze what it does not train, and return what an optimizer shall train.

        ``"prune"`` trains scores, rates and the scales and shifts of normalisation layers, and
        freezes the weights; ``"finetune"`` fixes the masks within the budget and trains everything
        except scores and rates. Parameters that were frozen before the pruner was attached stay
        frozen. Wrap the model in DDP after this call.

        Returns:
            list: param groups for a new optimizer. Those of scores and rates set weight decay to 0,
            because it would pull every layer's density to one half.

        Raises:
            ValueError: if the phase is unknown, or not in the order prune, finetune, finalize, or
                if a prune phase ends without a step of the followed optimizer, so that nothing was
                learned. A call of ``update_masks`` counts as a step, as after scores were written
                by hand.
        """
        phases.check_order(self.phase, phase, learns=bool(self.learn), name=type(self).__name__)
        if phase == "finetune" and self.phase != "finetune":
            self._check_learned()
            self._settle()
        self.phase = phase
        groups = phases.train_only(self.model, self.masks, phase, self.learn, self.frozen)
        for mask in self.masks:
            mask.waits = False
            mask.unfollowed = phase == "prune" and not self._following.active
        self._choose()
        return groups

    def _check_learned(self) -> None:
        if self.phase == "prune":
            moved = self.schedule.step > 0 or self._updated
            follows = self._following.active
            phases.check_learned(type(self).__name__, moved=moved, follows=follows)

    def _settle(self) -> None:
        """End the learning: from here on every group keeps the same number of weights or channels.

        If rates were learned, these numbers are rounded to cost at most the budget.
        """
        self._following.end(self._before_finetune_step)
        if "rates" not in self.learn or self.phase != "prune":
            return
        share = self.budget.share(rate_logits(self.masks), self.masks[0].k_min)
        optimizer_hook.warn_of_cut(share, self.budget, self.schedule)
        counts = self.budget.round(rate_densities(self.masks))
        for mask, count in zip(self.masks, counts, strict=True):
            mask.choose(count)
        self.control = FixedRates()

    def follow(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        """From now on, after each step of ``optimizer``, update learned rates and all masks.

        A step that a GradScaler skips does not count.

        Args:
            optimizer: an optimizer of the parameters that the prune phase trains.
            epochs: number of epochs of the prune phase; required if rates are learned.
            steps_per_epoch: number of optimizer steps (not batches) per epoch; required if rates
                are learned.

        Raises:
            TypeError: if ``optimizer`` is no optimizer.
            ValueError: if the pruner is not in the prune phase, the optimizer lacks parameters of
                the phase, a length is no whole number, or rates are learned and a length is
                missing.
        """
        phases.check_follows(self.phase)
        check_holds(optimizer, self.model)
        lengths = optimizer_hook.check_lengths(
            epochs, steps_per_epoch, required="rates" in self.learn
        )
        self.schedule = Schedule(self.schedule.step, *lengths)
        optimizer_hook.warn_of_decay(
            optimizer, [mask.rate for mask in self.masks if mask.rate is not None]
        )
        self._following.start(optimizer, self._after_step)
        for mask in self.masks:
            mask.unfollowed = False

    def _before_finetune_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.phase == "finetune":
            check_holds(optimizer, self.model)

    def _after_step(self) -> None:
        self.schedule.step += 1
        if self.schedule.step == 1:
            check_ranks(self.model)
            optimizer_hook.warn_of_first_step(
                self.masks, hinge=self._settings["control"] == "hinge", penalised=self._penalised
            )
        self.control.after_step(self.masks, self.schedule)
        self._choose()

    def set_density(self, density: float) -> None:
        """Prune further, by the magnitude of the weights as they are now (iterative pruning).

        Sehwag 2019, section 3: alternate this with fine-tuning, along a schedule of densities.
        Weights that were pruned before are zero, so they rank last.

        Args:
            density: share of the dense network that is kept from now on, counted as the budget
                does; at most the present density.

        Raises:
            ValueError: if the pruner learns something, has a pattern or is finalized, or the
                density is outside of (0, 1] or above the present one.
        """
        fixed = bool(self.learn) or self.pattern is not None
        phases.check_prunes_further(self.phase, fixed=fixed, name=type(self).__name__)
        planned = self._plan(density)
        phases.check_lower(density, planned.budget, self.budget)
        self.budget = planned.budget
        for group, mask, count in zip(self.groups, self.masks, planned.counts, strict=True):
            mask.scores.data.copy_(group.magnitudes.view_as(mask.scores))
            mask.choose(count)

    def lend_masks(self, model: nn.Module) -> None:
        """Overwrite the masks of a copy of the network (an EMA, say) with the present masks.

        A copy of the network has the masks of the moment when it was made. Call this before the
        copy is evaluated.

        Args:
            model: copy of the network with masks, or a wrapper with such a copy as ``module``.

        Raises:
            ValueError: if ``model`` is no copy of the network.
        """
        detach.lend_masks(self.model, model)

    def finalize(self, model: nn.Module | None = None) -> None:
        """Turn every masked layer back into the plain layer that it was, with zeros in its weight.

        Args:
            model: a copy of the network (an EMA, the best one so far) to finalize with the present
                masks of this pruner; None for the network itself, which ends the pruning.

        Raises:
            ValueError: if the pruner is finalized already, ``model`` is no copy of the network, or
                the pruner learns and has learned nothing (see ``set_phase``).
        """
        phases.check_finalizes(self.phase, learns=bool(self.learn), name=type(self).__name__)
        if model is not None and model is not self.model:
            self.lend_masks(model)
            detach.finalize(model)
            return
        self._check_learned()
        self._settle()
        detach.finalize(self.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter not in self.frozen)
        self.phase = "finalized"

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the model's own state_dict, as plain JSON data."""
        return {
            "settings": dict(self._settings),
            "density": self.budget.density,
            "phase": self.phase,
            "schedule": vars(self.schedule).copy(),
            "control": self.control.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that ``state_dict`` returned; load the model's state_dict first.

        Raises:
            ValueError: if the state is of a pruner with other settings or another budget, or only
                one of that pruner and this one is finalized.
        """
        self.check_state(state)
        if not self.learn and self.pattern is None and state["density"] != self.budget.density:
            self.budget = self._plan(state["density"]).budget
        self.schedule = Schedule(**state["schedule"])
        self.phase = state["phase"]
        if self.phase == "finetune":
            self.control = FixedRates()
        self.control.load(state["control"])
        for mask in self.masks:
            mask.waits = self.phase == "attached" and bool(self.learn)
        if self.phase in ("prune", "finetune"):
            self.set_phase(self.phase)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise a ValueError unless ``load_state_dict`` can load ``state`` into this pruner.

        It must be of a pruner with the same settings, and both or none must be finalized.
        """
        refuse_foreign(state)
        refuse_other(state, self._settings, self.budget.density)
        refuse_ended(state["phase"], self.phase)
