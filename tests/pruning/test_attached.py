"""Masks, scores and rates that are computed anew from what was built when a pruner was attached."""

from __future__ import annotations

import math

import pytest
import torch
from pattern_networks import small
from phase_steps import CUTS, NAMES, SIZES, attach, kept

from robust_plugin import HarpPruner, MagnitudePruner, Pruner
from robust_plugin.budget.control import FixedRates, HeldRates, HingeRates, PhaseSteps
from robust_plugin.pruning.attached import Attachment


def attached(pruner: Pruner) -> Attachment:
    return pruner._attached


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """The mask of the largest magnitudes, by a full sort."""
    order = values.abs().flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(values.shape)


@pytest.mark.parametrize("kind", ["magnitude", "held"])
def test_computed_anew_is_attached_anew(kind: str) -> None:
    """As after the weights of a trained network were loaded."""
    first, late = small(5), small()
    wanted = attach(kind, first, 0.1, schedule="at_once", rates="lamp")
    pruner = attach(kind, late, 0.1, schedule="at_once", rates="lamp")
    with torch.no_grad():
        for i in (0, 3, 6, 8):
            late[i]._parameters["weight"].copy_(small(5)[i].weight)
    attached(pruner).compute_anew(0.1)
    for ours, theirs in zip(pruner.masks, wanted.masks, strict=True):
        assert torch.equal(ours.mask, theirs.mask) and torch.equal(ours.scores, theirs.scores)
        assert ours.kept == theirs.kept
        assert (ours.rate is None and theirs.rate is None) or torch.equal(ours.rate, theirs.rate)


def test_shrinking_keeps_the_largest_of_what_was_kept() -> None:
    model = small()
    pruner = attach("magnitude", model, 0.1, rates="lamp")
    before = [mask.mask.clone() for mask in pruner.masks]
    for cut in range(1, CUTS + 1):
        with torch.no_grad():
            for name in NAMES:  # what training would do
                model.get_parameter(name).add_(0.1 * torch.randn_like(model.get_parameter(name)))
        shown = [group.members[0].weight for group in pruner.groups]
        attached(pruner).shrink(cut / CUTS, 0.1)
        assert pruner.kept == kept(SIZES, 0.1 ** (cut / CUTS))
        for mask, weight, was in zip(pruner.masks, shown, before, strict=True):
            assert torch.equal(mask.mask, largest(weight * was, mask.kept))
        before = [mask.mask.clone() for mask in pruner.masks]


def test_cuts_go_by_the_given_rates_if_there_are_some() -> None:
    steps = [PhaseSteps(step, 1, 4) for step in range(5)]
    line = {"schedule": lambda t, k: max(k, 1 - 2 * t)}
    free = attached(MagnitudePruner(small(), 0.5, **line))
    assert free.given == ()
    assert [free.cuts(steps[i], steps[i + 1], 0.5) for i in range(4)] == [True, False, False, False]
    rates = dict(zip(NAMES, (1.0, 0.9, 0.5, 0.1), strict=True))
    given = attached(MagnitudePruner(small(), rates=rates, **line))
    assert given.given == tuple(rates.values())
    assert [given.cuts(steps[i], steps[i + 1], 0.5) for i in range(4)] == [True, True, False, False]
    pattern = attached(MagnitudePruner(small(), pattern="1:4", **line))
    assert pattern.given == (0.25,) * 3


@pytest.mark.parametrize("kind", ["hydra", "held", "hinge", "rates"])
def test_the_last_cut_begins_with_what_is_left(kind: str) -> None:
    pruner = attach(kind, small(), 0.1, rates="lamp")
    attached(pruner).shrink(1.0, 0.1)
    left = [mask.mask.clone() for mask in pruner.masks]
    most = tuple(int(mask.sum()) for mask in left)
    assert sum(most) == kept(SIZES, 0.2)
    weights = [group.members[0].weight for group in pruner.groups]
    budget, control = attached(pruner).begin_last_cut()
    assert budget.most == most and budget.total == kept(SIZES, 0.1)
    kinds = {"hydra": FixedRates, "hinge": HingeRates}
    assert type(control) is kinds.get(kind, HeldRates)
    for mask, was, weight in zip(pruner.masks, left, weights, strict=True):
        scaled = math.sqrt(6 / weight[0].numel()) * weight / weight.abs().max()
        torch.testing.assert_close(mask.scores.detach(), scaled * was)
        if kind == "hydra":
            assert torch.equal(mask.mask, largest(mask.scores.detach(), mask.kept))
        else:
            assert torch.equal(mask.mask, was)  # the rates bring it down
            share = float(mask.density().detach())
            assert share == pytest.approx(int(was.sum()) / was.numel(), rel=1e-5)
    assert pruner.kept == (kept(SIZES, 0.1) if kind == "hydra" else sum(most))


def test_rates_begin_at_their_least_where_shrinking_left_less() -> None:
    """k_min is a tenth of the density. LAMP may leave less of a layer than that."""
    model = small()
    with torch.no_grad():
        model[3].weight.mul_(1e-3)
        model[3].weight[0, 0, 0, 0] = 10.0  # LAMP keeps little beside it
    pruner = HarpPruner(model, 0.3, rates="lamp", schedule="cubic")
    attached(pruner).shrink(1.0, 0.3)
    few = pruner.masks[1].kept
    assert few / SIZES[1] < pruner.masks[1].k_min
    budget, control = attached(pruner).begin_last_cut()
    assert pruner.masks[1].rate is not None and float(pruner.masks[1].rate) == -12
    counts = control.counts(pruner.masks, PhaseSteps(0, 1, 10))
    assert counts[1] <= few and all(n <= most for n, most in zip(counts, budget.most, strict=True))
    counts = control.counts(pruner.masks, PhaseSteps(10, 1, 10))
    assert sum(counts) == budget.total
