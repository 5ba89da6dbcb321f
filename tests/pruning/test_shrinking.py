"""The shrink phase: its cuts, its end, and what it is equal to."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from pattern_networks import small
from phase_steps import (
    CUTS,
    KINDS,
    NAMES,
    OPTIMIZERS,
    SIZES,
    Watch,
    attach,
    go_through,
    kept,
    last_layer_dense,
    loss_of,
    states_equal,
    steps_of,
)
from torch import nn

from robust_plugin import (
    Cubic,
    Geometric,
    GradualPruner,
    HydraPruner,
    MagnitudePruner,
    Pruner,
    Rounds,
)
from robust_plugin.budget.control import PhaseSteps
from robust_plugin.budget.schedules import AtOnce
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.groups import Group, Member
from robust_plugin.pruning.shrinking import (
    Shrinking,
    check_shrank,
    choose_by_magnitude,
    not_shrunk,
    ranked_last,
    shrinking_of,
)

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


@pytest.mark.parametrize("kind", KINDS)
def test_at_once_is_the_pruner_without_a_schedule_to_the_bit(kind: str) -> None:
    made, own = KINDS[kind]
    if kind == "gradual":  # its schedule is another one unless it is told
        made, own = Pruner, {"learn": ("scores",), "rates": "lamp"}
    runs = []
    for options in ({}, {"schedule": "at_once"}, {"schedule": AtOnce(), "last_cut": 0.3}):
        if kind == "magnitude":
            options.pop("last_cut", None)
        if kind == "gradual" and options:
            made, own = GradualPruner, {}
        pruner = made(small(), 0.1, **own, **options)
        assert "shrink" not in pruner.order
        for _ in go_through(pruner):
            pass
        state = pruner.state_dict()
        runs.append((pruner.model.state_dict(), state, [mask.mask for mask in pruner.masks]))
    for model, state, masks in runs[1:]:
        assert states_equal(model, runs[0][0]) and state == runs[0][1]
        assert all(torch.equal(a, b) for a, b in zip(masks, runs[0][2], strict=True))


@pytest.mark.parametrize("rates", ["uniform", "lamp", "global", last_layer_dense])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_rounds_are_iterative_pruning_by_hand(n: int, rates: Any) -> None:
    """Sehwag 2019: set_density at the same moments, with one optimizer, gives the same network."""
    density, per_round = 0.05, 3
    hand = MagnitudePruner(small(), density ** (1 / n), rates=rates)
    optimizer = OPTIMIZERS["sgd"](hand.set_phase("finetune"))
    by_hand, step = [], 0
    for r in range(1, n + 1):
        if r > 1:
            hand.set_density(density ** (r / n))
        by_hand += [mask.mask.clone() for mask in hand.masks]
        for _ in range(per_round):
            optimizer.zero_grad()
            loss_of(hand, step).backward()
            optimizer.step()
            step += 1

    pruner = MagnitudePruner(small(), density, rates=rates, schedule=Rounds(n))
    found, step = [mask.mask.clone() for mask in pruner.masks], 0
    epochs = {"shrink": max(1, n - 1), "finetune": 1}
    if n == 1:  # its only round is the fine-tuning; one step in which nothing falls
        for _ in steps_of(pruner, "shrink", steps=2):
            assert pruner.kept == pruner.budget.total
        assert all(torch.equal(a, b) for a, b in zip(by_hand, found, strict=True))
        return
    for phase in pruner.phases(OPTIMIZERS["sgd"], epochs=epochs, steps_per_epoch=per_round):
        for _ in phase:
            for _ in range(per_round):
                phase.optimizer.zero_grad()
                loss_of(pruner, step).backward()
                phase.optimizer.step()
                step += 1
            if phase.name == "shrink":
                found += [mask.mask.clone() for mask in pruner.masks]
    assert len(found) == len(by_hand) == 4 * n
    assert all(torch.equal(a, b) for a, b in zip(by_hand, found, strict=True))
    hand.finalize()
    assert states_equal(hand.model.state_dict(), pruner.model.state_dict())


def rows_of_two_sizes() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.rand(8, 8) + 1)
        model[0].weight[:4] *= 0.01
    return model


@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
def test_weights_of_zero_that_are_kept_rank_above_pruned_ones(kind: str) -> None:
    """No magnitude tells them apart, and ties go to the lower index, which is pruned here."""
    model = rows_of_two_sizes()
    pruner = attach(kind, model, 0.125, schedule=Geometric(2 if kind == "magnitude" else 1))
    optimizer = torch.optim.SGD(pruner.set_phase("shrink"), lr=0.0)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=2)
    watch = Watch(pruner)
    optimizer.step()
    if kind == "hydra":
        optimizer.step()
    watch.see()
    left = pruner.masks[0].mask.clone()
    assert not left[:4].any() and left.sum() < 32
    with torch.no_grad():
        model[0]._parameters["weight"].zero_()
    if kind == "magnitude":
        optimizer.step()
    else:
        pruner.set_phase("prune")
        assert torch.equal(pruner.masks[0].scores != 0, left)
    watch.see()
    assert pruner.masks[0].kept == pruner.budget.total == 8


def test_scores_of_zero_are_told_from_pruned_ones() -> None:
    scores = torch.tensor([0.0, -0.5, 0.0, 3.0, math.nan], dtype=torch.float64)
    pruned = torch.tensor([True, False, False, True, False])
    found = ranked_last(scores, pruned=pruned)
    assert found.dtype == torch.float32
    assert found[:4].tolist() == [0.0, -0.5, torch.finfo(torch.float32).tiny, 0.0]
    assert bool(found[4].isnan())  # which choosing a mask refuses


def test_choosing_again_never_adds_an_entry() -> None:
    group = Group((Member(nn.Linear(6, 1, bias=False), "0", "weight"),))
    group.members[0].layer.weight.data = torch.tensor([[0.3, 9.0, 0.1, 0.0, 0.2, 0.0]])
    mask = GroupMask(torch.zeros(1, 6), 6)
    mask.set_mask(torch.tensor([[True, False, True, True, False, True]]))
    for count, wanted in ((3, [0, 2, 3]), (2, [0, 2]), (1, [0])):
        choose_by_magnitude([group], [mask], [count])
        assert mask.mask.nonzero()[:, 1].tolist() == wanted


# --- how the density falls ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "last_cut", "end"),
    [(0.1, 0.5, 0.2), (0.25, 0.5, 0.5), (0.49, 0.5, 0.7), (0.01, 0.1, 0.1), (1.0, 0.5, 1.0)],
)
def test_the_end_of_the_phase(density: float, last_cut: float, end: float) -> None:
    shrinking = shrinking_of("geometric", last_cut, learns=True)
    assert shrinking.has_phase and shrinking.end(density) == pytest.approx(end)
    assert shrinking.fall(1.0)(density) == pytest.approx(end)
    assert shrinking.fall(0.5)(density) == pytest.approx(end**0.5)
    assert shrinking.fall(0.0)(density) == 1
    fixed = shrinking_of("cubic", last_cut, learns=False)
    assert fixed.end(density) == fixed.fall(1.0)(density) == density
    at_once = shrinking_of("at_once", last_cut, learns=True)
    assert not at_once.has_phase and at_once.fall(0.0)(density) == density


def test_cuts_are_where_a_density_falls() -> None:
    shrinking = Shrinking(Cubic(cuts=2), 1.0)
    moments = [PhaseSteps(step, 2, 4) for step in range(9)]
    cuts = [shrinking.cuts(moments[i - 1], moments[i], (0.1,)) for i in range(1, 9)]
    assert [i + 1 for i, cut in enumerate(cuts) if cut] == [4, 8]
    assert not shrinking.cuts(moments[0], moments[8], (1.0,))
    assert shrinking.cuts(moments[0], moments[8], (1.0, 0.5))  # one of the given rates falls


def test_a_schedule_that_rises_is_refused_where_it_does() -> None:
    pruner = MagnitudePruner(
        small(), 0.1, schedule=lambda t, k: k if 0.3 < t < 0.6 or t == 1 else 1
    )
    steps = steps_of(pruner, "shrink", steps=8)
    for _ in range(4):
        next(steps)
    assert pruner.kept == kept(SIZES, 0.1)
    with pytest.raises(ValueError, match="rises from 0.1 to 1 at 0.625 of the phase; .* never"):
        next(steps)


def test_given_rates_that_fall_at_different_times_all_arrive() -> None:
    """A line that stops at the target: the whole network arrives before its sparsest layer."""
    rates = dict(zip(NAMES, (1.0, 0.8, 0.01, 0.9), strict=True))
    pruner = MagnitudePruner(small(), rates=rates, schedule=lambda t, k: max(k, 1 - 1.2 * t))
    assert pruner.budget.density == pytest.approx(0.13, abs=0.01)
    for step in steps_of(pruner, "shrink", steps=12):
        now = [max(k, 1 - 1.2 * step / 12) for k in rates.values()]
        wanted = [max(1, n - int((1 - k) * n)) for n, k in zip(SIZES, now, strict=True)]
        assert [mask.kept for mask in pruner.masks] == wanted
    pruner.finalize()
    assert pruner.kept == pruner.budget.total


def test_a_phase_that_ends_early_warns_and_goes_to_its_end() -> None:
    for kind, end in (("magnitude", 0.1), ("hydra", 0.2)):
        pruner = attach(kind, small(), 0.1)
        for _ in steps_of(pruner, "shrink", steps=3, announced=8):
            pass
        assert pruner.kept == kept(SIZES, end ** (1 / 4))
        with pytest.warns(UserWarning, match="ends at step 3 of 8, so that the density fa") as said:
            pruner.set_phase(pruner.order[1])
        assert said[0].filename == __file__
        assert pruner.kept == kept(SIZES, 0.1)
        left = [mask.scores.count_nonzero() for mask in pruner.masks]
        if kind == "hydra":
            assert sum(left) == kept(SIZES, 0.2) == sum(pruner.budget.most)


def test_the_last_steps_of_a_schedule_that_has_arrived_may_be_left_out() -> None:
    pruner = attach("magnitude", small(), 0.1, schedule=Geometric(CUTS, until=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in steps_of(pruner, "shrink", steps=4, announced=8):
            pass
        pruner.set_phase("finetune")
    assert pruner.kept == kept(SIZES, 0.1)


def test_more_steps_than_announced_change_no_mask() -> None:
    pruner = attach("hydra", small(), 0.1)
    for step in steps_of(pruner, "shrink", steps=8, announced=4):
        if step == 4:
            masks = [mask.mask.clone() for mask in pruner.masks]
    assert all(torch.equal(a, b.mask) for a, b in zip(masks, pruner.masks, strict=True))
    assert pruner.steps.step == 8 and pruner.kept == kept(SIZES, 0.2)


@pytest.mark.parametrize("end", ["set_phase", "finalize"])
@pytest.mark.parametrize("follows", [True, False])
def test_a_phase_without_a_step_ends_in_an_error(end: str, follows: bool) -> None:
    pruner = attach("magnitude", small(), 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("shrink"), lr=0.1)
    if follows:
        pruner.follow(optimizer, epochs=1, steps_per_epoch=4)
    cause = "the followed optimizer has made no step" if follows else "no optimizer is followed"
    with pytest.raises(ValueError, match=f"in its shrink phase: {cause}. Call pruner.follow"):
        pruner.finalize() if end == "finalize" else pruner.set_phase("finetune")
    assert pruner.phase == "shrink" and pruner.kept == sum(SIZES)
    assert cause in not_shrunk("P", follows=follows)
    with pytest.raises(ValueError, match="P has not shrunk"):
        check_shrank("P", PhaseSteps(0, 2, 2), follows=follows, early=False)
    check_shrank("P", PhaseSteps(1, 2, 2), follows=follows, early=False)


@pytest.mark.parametrize("last_cut", [0, 1, -0.1, 1.5, math.nan, "0.5", True, None])
def test_illegal_last_cuts(last_cut: Any) -> None:
    with pytest.raises(ValueError, match=f"last_cut is {last_cut!r}; legal: the share"):
        HydraPruner(small(), 0.1, schedule="cubic", last_cut=last_cut)


@pytest.mark.parametrize("last_cut", [0.25, 0.75])
def test_the_last_cut_is_learned_from_what_is_left(last_cut: float) -> None:
    pruner = attach("hydra", small(), 0.1, last_cut=last_cut, rates="lamp")
    for _ in steps_of(pruner, "shrink"):
        pass
    assert pruner.kept == kept(SIZES, 0.1 / last_cut if last_cut > 0.5 else 0.1**0.5)
    left = [mask.mask.clone() for mask in pruner.masks]
    weights = [pruner.model.get_parameter(name).detach().clone() for name in NAMES]
    pruner.set_phase("prune")
    for mask, before, weight in zip(pruner.masks, left, weights, strict=True):
        fan_in = weight[0].numel()
        scaled = math.sqrt(6 / fan_in) * weight / weight.abs().max()
        torch.testing.assert_close(mask.scores.detach(), scaled * before)
        # Nothing is learned yet: the masks of largest magnitude.
        chosen = scaled.abs().flatten().sort(descending=True, stable=True).indices[: mask.kept]
        assert set(mask.mask.flatten().nonzero().flatten().tolist()) == set(chosen.tolist())
    assert pruner.budget.most == tuple(int(mask.sum()) for mask in left)
