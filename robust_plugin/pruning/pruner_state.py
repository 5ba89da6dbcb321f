"""What of a pruner changes while it prunes, and what happens where one phase ends.

``Pruner`` is the interface. Behind it, ``PrunerState`` holds the phase, the budget, the control of
the rates and the progress. ``following.py`` changes it after optimizer steps, and ``saving.py``
saves and loads it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import nn

from robust_plugin.budget.control import FixedRates, PhaseSteps
from robust_plugin.budget.density_logits import densities as rate_densities
from robust_plugin.budget.density_logits import rate_logits
from robust_plugin.masks.attach import check_layers, masked_weights, write_zeros
from robust_plugin.pruning import optimizer_hook, phases
from robust_plugin.pruning.attached import Attachment
from robust_plugin.pruning.first_step import RefusedSteps, check_first_step
from robust_plugin.pruning.optimizer_hook import Following, check_holds
from robust_plugin.pruning.phases import Learnable, Phase, PhaseName, phase_order
from robust_plugin.pruning.progress import Progress
from robust_plugin.pruning.shrinking import check_shrank, not_shrunk
from robust_plugin.runtime.distributed import check_ranks


class PrunerState:
    """The state of a pruner: phase, budget, control of the rates, and progress.

    Args:
        model: the network, with the masks attached.
        attached: what was built when they were attached.
        learn: what the prune phase learns: any of "scores" and "rates" (layer densities).
        frozen: parameters that stay frozen in every phase.
        name: name of the pruner in error messages.

    Attributes:
        masks: scores, rate logit and mask of each group.
        shrinking: how the density falls in the shrink phase.
        order: the phases of the pruner, in order.
        budget: the largest cost that may be kept.
        control: makes learned rates meet the budget.
        phase: the present phase.
        progress: how many steps of each phase are done.
        following: hooks on the optimizers that are followed.
        penalised: whether ``Pruner.budget_penalty`` was called in the prune phase.
        trained: parameters that the present phase trains.
        places: where the masks were attached.
    """

    def __init__(
        self,
        model: nn.Module,
        attached: Attachment,
        *,
        learn: Collection[Learnable],
        frozen: frozenset[nn.Parameter],
        name: str,
    ) -> None:
        self.model, self.attached, self.name = model, attached, name
        self.learn, self.frozen = frozenset(learn), frozen
        self.masks, self.shrinking = attached.masks, attached.shrinking
        self.order = phase_order(shrinks=self.shrinking.has_phase, learns=bool(learn))
        self.budget, self.control = attached.budget, attached.control
        self.phase: Phase = "attached"
        self.progress = self.no_progress()
        self.following = Following()
        self.penalised = False
        self.trained: frozenset[nn.Parameter] = frozenset()
        self.places = tuple(masked_weights(model))
        self._refused = RefusedSteps()
        for mask in self.masks:
            mask.waits, mask.fixed = self.waits_for, not self.learn
        # For a logit and a number of entries of each, in digits.
        self.masks[0].room += 160 + (48 if self.shrinking.has_phase else 32) * len(self.masks)
        self.record()

    def no_progress(self) -> Progress:
        """Return the progress of a pruner that has not begun."""
        return Progress(settled="rates" not in self.learn, shrunk=not self.shrinking.has_phase)

    @property
    def waits_for(self) -> str:
        """The phase without which nothing is pruned as intended; "" if fine-tuning is the first."""
        return "" if self.order[0] == "finetune" else self.order[0]

    @property
    def steps(self) -> PhaseSteps:
        """How many steps of the shrink or prune phase are done, and the length of that phase."""
        return self.progress.shrink if self.phase == "shrink" else self.progress.prune

    def choose(self) -> None:
        """Compute every mask anew from its scores and the number of entries to keep."""
        control = self.control if self.progress.shrunk else FixedRates()
        counts = control.counts(self.masks, self.steps)
        for mask, count in zip(self.masks, counts, strict=True):
            mask.choose(count)

    def record(self) -> None:
        """Write into the masks what a state_dict of the network alone needs to continue."""
        budget = {"total": self.budget.total, "density": self.budget.density}
        for mask in self.masks:
            mask.budget = budget
        if self.learn or self.progress.finetune_steps or self.shrinking.has_phase:
            control = self.control.state()
            self.masks[0].progress = {**self.progress.state(), "control": control}

    def begin(self, phase: PhaseName) -> list[dict[str, Any]]:
        """Begin a phase, and return what an optimizer shall train (see ``Pruner.set_phase``)."""
        phases.check_order(
            self.phase,
            phase,
            order=self.order,
            shrunk=self.progress.shrunk or self.progress.shrink.step > 0,
            learned=self.progress.has_learned,
            name=self.name,
        )
        check_layers(self.model, self.places)
        former = self.phase
        if phase != "shrink":
            self.end_shrinking(learn_next=phase == "prune")
        if phase == "finetune" and former != "finetune":
            self.check_learned()
            self.settle()
        self.phase = phase
        groups = phases.train_only(self.model, self.masks, phase, self.learn, self.frozen)
        self.trained = frozenset(p for group in groups for p in group["params"])
        for mask in self.masks:
            mask.unfollowed = phase == "prune" and not self.following.active
        if "prune" in (phase, former):  # else the masks are as they were made or loaded
            self.choose()
        self.record()
        if phase != "prune":
            if former != phase:
                write_zeros(self.model)
            check_first_step(self.model, check_ranks)
        self.expect_follow()
        return groups

    def expect_follow(self) -> None:
        """In the shrink phase, refuse the first optimizer step if no optimizer is followed."""
        self._refused.end()
        if self.phase == "shrink" and not self.following.active:
            self._refused.begin(self.model, not_shrunk(self.name, follows=False))

    def check_shrunk(self) -> None:
        """Raise an error if a state of the shrink phase was loaded in a later phase that learns.

        Its masks keep more than the last cut was learned from.

        Raises:
            ValueError: naming both phases.
        """
        if self.learn and self.phase in ("prune", "finetune") and not self.progress.shrunk:
            raise ValueError(
                f"the state that was loaded last is of the shrink phase, and {self.name} is in "
                f"phase {self.phase!r}; attach a new pruner, load the state into it, and continue "
                "with set_phase('shrink')."
            )

    def check_learned(self) -> None:
        """Raise a ValueError if a prune phase ends before anything was learned."""
        if self.phase == "prune":
            phases.check_learned(
                self.name,
                moved=self.progress.has_learned,
                follows=self.following.active,
                loaded=self.progress.loaded_step == 0,
            )

    def end_shrinking(self, *, learn_next: bool) -> None:
        """Go to the end of the schedule, and prepare the prune phase if it comes next."""
        if self.progress.shrunk:
            return
        self.check_shrunk()
        steps, density = self.progress.shrink, self.budget.density
        end = replace(steps, step=max(steps.step, steps.total))
        early = self.attached.cuts(steps, end, density)
        check_shrank(self.name, steps, follows=self.following.active, early=early)
        if early:
            self.attached.shrink(1.0, density)
        self.following.end(self.before_later_step)
        write_zeros(self.model)
        self.progress.shrunk = True
        if learn_next:
            self.budget, self.control = self.attached.begin_last_cut()
            self.progress.most = self.budget.most

    def settle(self) -> None:
        """End the learning: from here on every group keeps the same number of weights or channels.

        If rates were learned, these numbers are rounded to cost at most the budget.
        """
        self.following.end(self.before_later_step)
        if self.progress.settled:
            return
        share = self.budget.share(rate_logits(self.masks), self.masks[0].k_min)
        optimizer_hook.warn_of_cut(share, self.budget, self.progress.prune)
        counts = self.budget.round(rate_densities(self.masks))
        for mask, count in zip(self.masks, counts, strict=True):
            mask.choose(count)
        self.control = FixedRates()
        self.progress.settled = True
        self.record()

    def before_later_step(self, optimizer: Any) -> None:
        """Check an optimizer of an earlier phase that is used in this one."""
        if self.phase not in ("attached", "finalized"):
            check_holds([optimizer], self.model)
