"""The Pruner: scores and rates, each fixed or learned, on any model.

|                | rates uniform    | rates given (ERK, LAMP) | rates learned  |
|----------------|------------------|-------------------------|----------------|
| scores fixed   | Sehwag 2019, LWM | magnitude at good rates | HARP rate-only |
| scores learned | HYDRA            | HARP score-only         | HARP           |
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robust_plugin.budget.budget import Unit, rate_logit
from robust_plugin.budget.control import Control, FixedRates, Schedule, control_of, rate_logits
from robust_plugin.budget.control import densities as rate_densities
from robust_plugin.budget.plan import Plan, planner
from robust_plugin.budget.rates import Rates
from robust_plugin.budget.stepped import check_learns_rates
from robust_plugin.masks import detach
from robust_plugin.masks.attach import GroupMask, attach_groups, masked_weights
from robust_plugin.masks.groups import Group, check_groups, divisible
from robust_plugin.masks.prunable import refuse_wrapped, warn_of_uncovered, weight_groups
from robust_plugin.masks.select import parse_pattern
from robust_plugin.masks.transformed import refuse_transformed
from robust_plugin.pruning.phases import (
    Following,
    Learnable,
    Phase,
    check_holds,
    check_order,
    nothing_learned,
    train_only,
    warn_of_decay,
)
from robust_plugin.pruning.scores import Scores, initial_scores
from robust_plugin.pruning.state import refuse_ended, refuse_other, settings_of
from robust_plugin.runtime.distributed import check_ranks

# HARP, section 4: uniform rates start at 10 %, also where the target is below, and no layer's rate
# falls under k_min = .1 k. Other rules give the rates of the target itself to start from: at 10 %
# ERK leaves small layers dense, which no gradient would bring down again.
_START_DENSITY = 0.1
_K_MIN_SHARE = 0.1


class Pruner:
    """Attaches masks to a model and learns what they keep.

    Args:
        model: the network, pre-trained and bare (no DDP, no torch.compile). Masks attach in place.
        density: k, the share kept, 0 < k <= 1; a pattern or a dict of rates implies it.
        learn: what the prune phase trains: any of ``"scores"``, ``"rates"``.
        scores: the initial scores: a name, a function of the weight, or tensors by parameter.
        rates: each layer's density: ``"uniform"``, ``"erk"``, ``"lamp"``, ``"global"``, a
            function, or densities by parameter name. Where rates are learned, their start.
        budget: what ``density`` is a share of: ``"params"``, ``"flops"``, or, with channel
            groups, ``"channels"``: the FLOPs of the network with that share of each group's (of
            channel groups all three count the whole network they leave).
        control: how learned rates meet the budget: ``"held"`` exactly at every step, falling to
            the target over the phase, or by the paper's ``"hinge"`` (see ``budget_penalty``).
        gamma_step: how fast the hinge's weight grows.
        pattern: ``"2:4"``, say, instead of a density; or, beside one, ``"n:4"`` with the letter n:
            each layer keeps its rate's n of every 4, together at most the budget.
        groups: what shares a mask; default one group a weight.
        round_to: keep channels in multiples of 16 (AVX-512) or 8, as hardware computes them:
            every group that it divides keeps whole blocks, at least one, within the budget.
        exclude: layers, or names of layers, that stay dense.
        example_inputs: what one forward pass takes, for the budgets in FLOPs and channels.

    Attributes:
        groups: what is pruned.
        left_dense: names of weights that a pattern does not fit.
        masks: scores, rate and mask of each group.
        budget: what may be kept.
        phase: ``"attached"``, ``"prune"``, ``"finetune"`` or ``"finalized"``.
        frozen: the parameters that were frozen before, and stay so.

    Raises:
        TypeError: if the model is no nn.Module, or round_to no integer.
        ValueError: naming the value and what is legal; the model is then unchanged.
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
        _check_choices(model, learn, control)
        self.model = model
        self.learn = frozenset(learn)
        self.pattern = parse_pattern(pattern) if pattern is not None else None
        learns_rates = "rates" in self.learn
        if self.pattern is not None and learns_rates:
            check_learns_rates(self.pattern, control)
        if groups is None:
            found = weight_groups(model, exclude)
            if not exclude:
                warn_of_uncovered(model, found)
        else:
            found = check_groups(model, groups, exclude)
        refuse_transformed(member for group in found for member in group.members)
        self.groups, self.left_dense = divisible(found, self.pattern)
        self.round_to = round_to
        self._plan = planner(
            model,
            self.groups,
            rates=rates,
            unit=budget,
            pattern=self.pattern,
            least_start=_START_DENSITY if learns_rates and rates == "uniform" else 0.0,
            round_to=round_to,
            example_inputs=example_inputs,
        )
        first = self._plan(density)
        self.budget = first.budget
        self.schedule = Schedule()
        self.phase: Phase = "attached"
        self.frozen = frozenset(p for p in model.parameters() if not p.requires_grad)
        # All masks are built before the first is attached: an error leaves the model alone.
        self.masks = self._new_masks(first, scores)
        kind = control if learns_rates else None
        self.control = control_of(kind, self.budget, self.masks, gamma_step)
        self._following = Following()
        self._settings = settings_of(
            self.groups,
            self.budget,
            learn=self.learn,
            pattern=self.pattern,
            control=kind,
            gamma_step=gamma_step if learns_rates else None,
            round_to=round_to,
        )
        attach_groups(self.groups, self.masks)

    def _new_masks(self, first: Plan, scores: Scores) -> tuple[GroupMask, ...]:
        learns_rates = "rates" in self.learn
        k_min = _K_MIN_SHARE * self.budget.density if learns_rates else 0.0
        if k_min and self.pattern is not None:
            k_min = 1 / self.pattern.m
        return tuple(
            GroupMask(
                initial_scores(scores, group.name, group.magnitudes),
                count,
                k_min=k_min,
                rate=rate_logit(k, k_min) if learns_rates else None,
                pattern=self.pattern,
            )
            for group, k, count in zip(self.groups, first.densities, first.counts, strict=True)
        )

    def __repr__(self) -> str:
        """Return a line: phase, groups, and what is kept."""
        return (
            f"{type(self).__name__}(phase={self.phase!r}, {len(self.groups)} groups, keeps "
            f"{self.kept:,} of {self.budget.full:,}, budget {self.budget.density:.4g})"
        )

    @property
    def kept(self) -> int:
        """What the masks keep now, in the budget's unit."""
        return int(self.budget.cost([int(mask.kept) for mask in self.masks]))

    @property
    def densities(self) -> dict[str, float]:
        """The share each group keeps now, by name."""
        return {
            group.name: int(mask.kept) / group.size
            for group, mask in zip(self.groups, self.masks, strict=True)
        }

    def budget_penalty(self) -> Tensor:
        """gamma(epoch) L_hw, HARP equation 4; zero for every method without the hinge."""
        control = self.control if self.phase == "prune" else FixedRates()
        return control.penalty(self.masks, self.schedule)

    def update_masks(self) -> None:
        """Choose every mask anew from its scores and its rate.

        ``follow`` calls this after each optimizer step; call it after writing scores by hand.
        """
        counts = self.control.counts(self.masks, self.schedule)
        for mask, count in zip(self.masks, counts, strict=True):
            mask.choose(count)

    def set_phase(self, phase: Literal["prune", "finetune"]) -> list[dict[str, Any]]:
        """Freeze what the phase does not train and return optimizer param groups of the rest.

        ``"prune"`` trains scores, rates and the affine parameters of norms, weights frozen;
        ``"finetune"`` fixes the masks at exactly the budget and trains everything else. What
        was frozen before attaching stays frozen. Scores and rates get no weight decay: it would
        pull every rate to one half. Wrap in DDP after this call.

        Raises:
            ValueError: if the phase is unknown, or out of order: prune, finetune, finalize.
        """
        check_order(self.phase, phase, learns=bool(self.learn), name=type(self).__name__)
        if phase == "finetune" and self.phase != "finetune":
            self._settle()
        self.phase = phase
        groups = train_only(self.model, self.masks, phase, self.learn, self.frozen)
        for mask in self.masks:
            mask.unfollowed = phase == "prune" and not self._following.active
        self.update_masks()
        return groups

    def _settle(self) -> None:
        """End the learning: from here on every count is fixed, their sum exactly the budget."""
        self._following.end(self._before_finetune_step)
        if "rates" not in self.learn or self.phase != "prune":
            return
        share = self.budget.share(rate_logits(self.masks), self.masks[0].k_min)
        if share > 1.01 * self.budget.total / self.budget.full:
            warnings.warn(
                f"the rates ended at {share:.4g}, the budget is {self.budget.density:.4g}, at step "
                f"{self.schedule.step} of {self.schedule.steps}; the rest is cut at once. follow() "
                "counts optimizer steps, not batches; the hinge may need more of them.",
                stacklevel=3,
            )
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
        """Choose the masks anew after each step of ``optimizer``, and move what is scheduled.

        A step that a GradScaler skips does not count.

        Args:
            optimizer: of the prune phase's parameters.
            epochs: of the prune phase; needed where rates are learned.
            steps_per_epoch: optimizer steps (not batches) in an epoch; likewise.

        Raises:
            TypeError: if it is no optimizer.
            ValueError: outside the prune phase, without the phase's parameters, for a length that
                is no whole number, or without the lengths that the schedule of rates needs.
        """
        if self.phase != "prune":
            raise ValueError(
                f"follow is for the prune phase, and the phase is {self.phase!r}; call "
                "set_phase('prune') first. Fine-tuning needs no follow."
            )
        check_holds(optimizer, self.model)
        lengths = (epochs or 0, steps_per_epoch or 0)
        if not all(isinstance(length, int) for length in lengths):
            raise ValueError(
                f"epochs is {epochs!r} and steps_per_epoch is {steps_per_epoch!r}; legal: whole "
                "numbers."
            )
        if "rates" in self.learn and min(lengths) < 1:
            raise ValueError(
                f"epochs is {epochs} and steps_per_epoch is {steps_per_epoch}; learned rates move "
                "on a schedule: give both, at least 1."
            )
        self.schedule = Schedule(self.schedule.step, *lengths)
        warn_of_decay(optimizer, [mask.rate for mask in self.masks if mask.rate is not None])
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
        self.control.after_step(self.masks, self.schedule)
        self.update_masks()

    def set_density(self, density: float) -> None:
        """Prune further by the magnitude of the weights as they are now (iterative pruning).

        Sehwag 2019, section 3: alternate with fine-tuning along a density schedule. What was
        pruned before ranks last.

        Raises:
            ValueError: if something is learned, a pattern is set, the pruner is finalized, or the
                density is outside (0, 1] or above the present one.
        """
        if self.phase == "finalized":
            raise ValueError(
                "the pruner is finalized, so that no mask is left to change; attach a new "
                "MagnitudePruner to prune further."
            )
        if self.learn or self.pattern is not None:
            raise ValueError(
                f"{type(self).__name__} cannot change its density on the way; iterative pruning "
                "is MagnitudePruner's, without a pattern."
            )
        planned = self._plan(density)
        if planned.budget.total > self.budget.total:
            raise ValueError(
                f"density is {density}, and {self.budget.density:g} is kept: weights that are "
                "pruned are zero, and no magnitude says which of them should come back. Legal: at "
                f"most {self.budget.density:g}; to keep more, attach a new pruner to the network "
                "as it was."
            )
        self.budget = planned.budget
        for group, mask, count in zip(self.groups, self.masks, planned.counts, strict=True):
            mask.scores.data.copy_(group.magnitudes.view_as(mask.scores))
            mask.choose(count)

    def lend_masks(self, model: nn.Module) -> None:
        """Give a copy of the network (an EMA, say) the masks as they are now.

        A copy keeps the masks it was made with; lend it these before it is evaluated.

        Raises:
            ValueError: if ``model`` is no copy of the network.
        """
        detach.lend_masks(self.model, model)

    def finalize(self, model: nn.Module | None = None) -> None:
        """Turn every masked layer into the plain layer it was, zeros in place.

        Args:
            model: a copy of the network (EMA, the best so far), which then gets this pruner's
                masks; default the network itself, which ends the pruning.

        Raises:
            ValueError: if it was finalized before, ``model`` is no copy of the network, or
                nothing of what was to be learned has been.
        """
        if self.phase == "finalized":
            raise ValueError("the pruner is finalized already.")
        if self.phase == "attached" and self.learn:
            raise ValueError(nothing_learned(type(self).__name__))
        if model is not None and model is not self.model:
            self.lend_masks(model)
            detach.finalize(model)
            return
        self._settle()
        detach.finalize(self.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter not in self.frozen)
        self.phase = "finalized"

    def state_dict(self) -> dict[str, Any]:
        """Return what continues the pruning besides the model's own state_dict; plain JSON."""
        return {
            "settings": dict(self._settings),
            "density": self.budget.density,
            "phase": self.phase,
            "schedule": vars(self.schedule).copy(),
            "control": self.control.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; load the model's own state first.

        Raises:
            ValueError: if the state is of a pruner with other settings or another budget, or one
                of the two is finalized and the other is not.
        """
        self.check_state(state)
        if not self.learn and self.pattern is None and state["density"] != self.budget.density:
            self.budget = self._plan(state["density"]).budget
        self.schedule = Schedule(**state["schedule"])
        self.phase = state["phase"]
        if self.phase == "finetune":
            self.control = FixedRates()
        self.control.load(state["control"])
        if self.phase in ("prune", "finetune"):
            self.set_phase(self.phase)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise a ValueError unless ``state`` is of a pruner like this one, finalized alike."""
        refuse_other(state, self._settings, self.budget.density)
        refuse_ended(state["phase"], self.phase)


def _check_choices(model: nn.Module, learn: Collection[Learnable], control: Control) -> None:
    if next(masked_weights(model), None) is not None:
        raise ValueError("the model has a pruner already; finalize it before attaching one.")
    if not set(learn) <= set(get_args(Learnable)) or isinstance(learn, str):
        raise ValueError(f"learn is {learn!r}; legal: any of {get_args(Learnable)}.")
    if control not in get_args(Control):
        raise ValueError(f"control is {control!r}; legal: {', '.join(get_args(Control))}.")
