"""What a Pruner checks and builds when it is attached to a model.

Everything here runs once, in the constructor of ``Pruner``: it checks the arguments and builds the
budget, one mask per group of weights or channels, the object that changes learned layer densities
(rates), and the settings with which saved states are compared. The masks are attached last, so that
an error leaves the model unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import get_args

from torch import Tensor, nn

from robust_plugin.budget.budget import Unit
from robust_plugin.budget.control import Control, control_of
from robust_plugin.budget.density_logits import rate_logit
from robust_plugin.budget.patterns_and_blocks import check_learns_rates
from robust_plugin.budget.plan import Plan, planner
from robust_plugin.budget.rates import Rates
from robust_plugin.budget.schedules import schedule_name
from robust_plugin.masks.attach import attach_groups, masked_weights
from robust_plugin.masks.group_checks import check_groups, divisible
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.groups import Group
from robust_plugin.masks.prunable import warn_of_uncovered, weight_groups
from robust_plugin.masks.select import Pattern, parse_pattern
from robust_plugin.masks.transformed import refuse_transformed
from robust_plugin.pruning.attached import Attachment
from robust_plugin.pruning.phases import Learnable
from robust_plugin.pruning.scores import Scores, initial_scores
from robust_plugin.pruning.shrinking import Shrinking
from robust_plugin.pruning.state import settings_of

# HARP, section 4: uniform rates start at 10 %, also where the target is lower, and no layer's rate
# falls below k_min = 0.1 k. Rates by another rule start at that rule's rates for the target: at
# 10 %, ERK leaves small layers dense, and no gradient would bring their rates down again.
_START_DENSITY = 0.1
_K_MIN_SHARE = 0.1


def check_choices(
    model: nn.Module, learn: Collection[Learnable], control: Control, pattern: str | None
) -> Pattern | None:
    """Return the parsed pattern (None for None) if a pruner with these arguments is possible.

    Args:
        model: the network.
        learn: what the prune phase learns: any of "scores" and "rates" (layer densities).
        control: how learned layer densities meet the budget, "held" or "hinge".
        pattern: n:m pattern as text, such as ``"2:4"``; None for unstructured masks.

    Raises:
        ValueError: if the model has a pruner already, or an argument is unknown or does not fit the
            others.
    """
    if next(masked_weights(model), None) is not None:
        raise ValueError("the model has a pruner already; finalize it before attaching one.")
    known = isinstance(learn, Collection) and set(learn) <= set(get_args(Learnable))
    if not known or isinstance(learn, str):
        raise ValueError(f"learn is {learn!r}; legal: any of {get_args(Learnable)}.")
    if control not in get_args(Control):
        raise ValueError(f"control is {control!r}; legal: {', '.join(get_args(Control))}.")
    if pattern is None:
        return None
    parsed = parse_pattern(pattern)
    if "rates" in learn:
        check_learns_rates(parsed, control)
    return parsed


def find_groups(
    model: nn.Module, groups: Sequence[Group] | None, exclude: Collection[str | nn.Module]
) -> Sequence[Group]:
    """Return the groups to mask, after checking that masks on them would have an effect.

    Args:
        model: the network.
        groups: groups that the user gave; None for one group per weight.
        exclude: layers, or names of layers, that stay dense.

    Raises:
        TypeError: if ``groups`` is not a sequence of groups.
        ValueError: if nothing is left to prune, or a group or layer cannot be masked.
    """
    if groups is None:
        found = weight_groups(model, exclude)
        if not exclude:
            warn_of_uncovered(model, found)
    else:
        found = check_groups(model, groups, exclude)
    refuse_transformed(member for group in found for member in group.members)
    return found


def attach_masks(
    model: nn.Module,
    groups: Sequence[Group],
    density: float | None,
    *,
    learn: Collection[Learnable],
    scores: Scores,
    rates: Rates,
    unit: Unit,
    control: Control,
    gamma_step: float,
    pattern: Pattern | None,
    round_to: int,
    shrinking: Shrinking,
    example_inputs: Tensor | tuple[Tensor, ...] | None,
) -> Attachment:
    """Build what a pruner needs for the groups of a model, and attach the masks to the model.

    Args:
        model: the network, without masks.
        groups: the groups of weights or channels that masks can cover.
        density: share of the cost of all groups that is kept, in (0, 1]; None if ``pattern`` or
            ``rates`` imply it.
        learn: what the prune phase learns: any of "scores" and "rates" (layer densities).
        scores: initial scores: a name, a function of the weight, or tensors by parameter name.
        rates: density of each layer: a rule, a function, or densities by parameter name.
        unit: what the budget counts: "params", "flops" or "channels".
        control: how learned layer densities meet the budget, "held" or "hinge".
        gamma_step: growth per epoch of the factor of the hinge penalty in the loss.
        pattern: n:m pattern of the masks; None for unstructured masks.
        round_to: number of channels per block that is kept or removed as a whole.
        shrinking: how the density falls in the shrink phase, if there is one.
        example_inputs: inputs of one forward pass, for budgets in FLOPs and channels.

    Raises:
        TypeError: if round_to is no integer.
        ValueError: naming the illegal value and what is legal; the model is then unchanged.
    """
    learns_rates = "rates" in learn
    kept_groups, left_dense = divisible(groups, pattern)
    wide_start = learns_rates and rates == "uniform" and not shrinking.has_phase
    plan = planner(
        model,
        kept_groups,
        rates=rates,
        unit=unit,
        pattern=pattern,
        least_start=_START_DENSITY if wide_start else 0.0,
        round_to=round_to,
        example_inputs=example_inputs,
    )
    first = plan(density, fall=shrinking.fall(0.0))
    # All masks are built before the first one is attached: an error leaves the model alone.
    # While the density falls, a layer of a 2:4 pattern keeps 4, then 3 of every 4.
    of_masks = Pattern(None, pattern.m) if pattern and shrinking.has_phase else pattern
    masks = _new_masks(kept_groups, first, scores, of_masks, learn)
    kind = control if learns_rates else None
    attachment = Attachment(
        kept_groups,
        left_dense,
        plan,
        density,
        shrinking,
        first.budget,
        masks,
        control_of(kind, first.budget, masks, gamma_step),
        settings_of(
            kept_groups,
            first.budget,
            learn=learn,
            pattern=pattern,
            control=kind,
            gamma_step=gamma_step if learns_rates else None,
            round_to=round_to,
            schedule=schedule_name(shrinking.schedule),
            last_cut=shrinking.last_cut if learn and shrinking.has_phase else None,
        ),
        plan(None).densities if density is None else (),
        scores,
        kind,
        gamma_step,
    )
    attach_groups(kept_groups, masks)
    return attachment


def _new_masks(
    groups: Sequence[Group],
    first: Plan,
    scores: Scores,
    pattern: Pattern | None,
    learn: Collection[Learnable],
) -> tuple[GroupMask, ...]:
    """Return one mask per group, not attached to the model yet.

    Args:
        groups: the groups of weights or channels to prune.
        first: density of each group at the start, and how many weights or channels it then keeps.
        scores: initial scores: a name, a function of the weight, or tensors by parameter name.
        pattern: n:m pattern of the masks; None for unstructured masks.
        learn: what the prune phase learns: any of "scores" and "rates" (layer densities).
    """
    learns_rates = "rates" in learn
    k_min = _K_MIN_SHARE * first.budget.density if learns_rates else 0.0
    if k_min and pattern is not None:
        k_min = 1 / pattern.m
    return tuple(
        GroupMask(
            initial_scores(scores, group.name, group.magnitudes),
            count,
            learned="scores" in learn,
            k_min=k_min,
            rate=rate_logit(k, k_min) if learns_rates else None,
            pattern=pattern,
        )
        for group, k, count in zip(groups, first.densities, first.counts, strict=True)
    )
