"""How many weights or channels are kept at every step of every phase, and that none comes back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from channel_networks import build
from pattern_networks import counts_of_every, small
from phase_steps import (
    CUTS,
    GIVEN,
    KINDS,
    LENGTHS,
    NAMES,
    OPTIMIZERS,
    SIZES,
    Watch,
    attach,
    go_through,
    kept,
    last_layer_dense,
)
from torch.nn import functional as F

from robust_plugin import Budget, Pruner
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


@pytest.mark.parametrize("density", [0.5, 0.05])
@pytest.mark.parametrize("rates", ["uniform", "erk", "lamp", "global", last_layer_dense, GIVEN])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_weights_as_the_density_of_now_says_at_every_step(
    kind: str, rates: Any, density: float
) -> None:
    given = isinstance(rates, dict)
    pruner = attach(kind, small(), None if given else density, rates=rates)

    def due(share: float, *, last_cut: bool) -> int:
        """By the formulas of the documentation; given rates fall each on its own way."""

        def now(k: float) -> float:
            return (min(k / 0.5, k**0.5) if last_cut and pruner.learn else k) ** share

        each = GIVEN.values() if given else [density] * len(SIZES)
        return sum(kept((n,), now(k)) for n, k in zip(SIZES, each, strict=True))

    target = due(1, last_cut=False)
    assert pruner.kept == due(0, last_cut=True) and pruner.budget.total == target
    watch, left, before = Watch(pruner), [], [*SIZES]
    for phase, step in go_through(pruner):
        if phase == "shrink":
            counts = watch.see()
            share = step * CUTS // LENGTHS["shrink"] / CUTS
            assert sum(counts) == pruner.kept == due(share, last_cut=True)
            assert all(now <= then for now, then in zip(counts, before, strict=True))
            before, left = counts, watch.masks[-1]
        elif phase == "prune":
            counts = watch.see_learned(left)
            assert all(now <= then for now, then in zip(counts, before, strict=True))
            if kind in ("hydra", "gradual"):
                assert sum(counts) == target
            if kind in ("held", "rates") and step >= 0.6 * LENGTHS["prune"]:
                assert sum(counts) == target
        else:
            assert sum(watch.see()) == target
    pruner.finalize()
    assert sum(int(pruner.model.get_parameter(n).count_nonzero()) for n in NAMES) == target


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["magnitude", "hydra", "held"])
def test_pruned_weights_stay_zero_and_pruned(kind: str, optimizer: str) -> None:
    """Momentum and weight decay move what has no gradient; the network does not see it."""
    pruner = attach(kind, small(), 0.1, rates="lamp")
    watch, left = Watch(pruner), []
    for phase, _ in go_through(pruner, OPTIMIZERS[optimizer]):
        watch.see() if phase != "prune" else watch.see_learned(left)
        if phase == "shrink":
            left = watch.masks[-1]
        if phase == "prune":
            for mask, of_shrinking in zip(pruner.masks, left, strict=True):
                assert not mask.scores[~of_shrinking].any()
        state = pruner.model.state_dict()
        for name, mask in zip(NAMES, pruner.masks, strict=True):
            if phase != "prune":  # there the weights are frozen, so that masks may change
                assert not state[name][~mask.mask].any()
    assert pruner.kept == kept(SIZES, 0.1)


@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:8"])
def test_every_row_of_a_pattern_at_every_step(kind: str, pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    pruner = attach(kind, small(), pattern=pattern)
    end = min(2 * n / m, math.sqrt(n / m)) if kind == "hydra" else n / m
    watch, left = Watch(pruner), []
    for phase, step in go_through(pruner):
        now = n
        if phase == "shrink":
            now = math.ceil(end ** (step * CUTS // LENGTHS["shrink"] / CUTS) * m - 1e-9)
        counts = watch.see() if phase != "prune" else watch.see_learned(left)
        left = watch.masks[-1] if phase == "shrink" else left
        assert counts == [size // m * now for size in SIZES[1:]]
        for i in (3, 6, 8):
            assert counts_of_every(pruner.model[i].weight, m) == {now}
    pruner.finalize()
    assert pruner.budget.total == sum(SIZES[1:]) // m * n


@pytest.mark.parametrize("kind", ["magnitude", "hydra", "held"])
def test_a_pattern_with_n_per_layer_never_exceeds_the_budget(kind: str) -> None:
    pruner = attach(kind, small(), 0.3, pattern="n:4", rates="lamp")
    full = sum(SIZES[1:])
    end = min(0.6, 0.3**0.5) if pruner.learn else 0.3
    watch, left, before = Watch(pruner), [], [*SIZES[1:]]
    for phase, step in go_through(pruner):
        counts = watch.see() if phase != "prune" else watch.see_learned(left)
        left = watch.masks[-1] if phase == "shrink" else left
        assert all(now <= then for now, then in zip(counts, before, strict=True))
        before = counts if phase == "shrink" else before
        share = step * CUTS // LENGTHS["shrink"] / CUTS
        if phase == "shrink":
            # With uniform counts as many as K, rounded down to whole n.
            assert sum(counts) <= kept(SIZES[1:], end**share)
        for i in (3, 6, 8):
            assert len(counts_of_every(pruner.model[i].weight, 4)) == 1
    assert pruner.kept <= pruner.budget.total == kept(SIZES[1:], 0.3)
    assert pruner.kept > pruner.budget.total - full / 4
    pruner.finalize()


X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
Y = torch.arange(4)


def channel_steps(pruner: Pruner, phase: Any, steps: int) -> Any:
    optimizer = torch.optim.SGD(pruner.set_phase(phase), lr=0.01, momentum=0.9, weight_decay=5e-4)
    if phase != "finetune":
        pruner.follow(optimizer, epochs=1, steps_per_epoch=steps)
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(pruner.model(X), Y).backward()
        optimizer.step()
        yield step + 1


def room_for_more(budget: Budget, counts: list[int], limits: list[int], round_to: int) -> bool:
    """Whether one more entry (or block) of any group is affordable."""
    for i, (count, limit, size) in enumerate(zip(counts, limits, budget.sizes, strict=True)):
        more = [*counts]
        more[i] += round_to if size % round_to == 0 else 1
        if count < limit and budget.cost(more) <= budget.total:
            return True
    return False


@pytest.mark.parametrize("budget", ["params", "flops", "channels"])
@pytest.mark.parametrize("kind", ["magnitude", "hydra", "held"])
@pytest.mark.parametrize(("name", "round_to"), [("concat", 1), ("cnn", 4)])
def test_channels_fall_within_the_budget_and_can_be_removed(
    name: str, round_to: int, kind: str, budget: Any
) -> None:
    model = build(name)
    groups = channel_groups(model, X[:1])
    density = 0.4
    pruner = attach(kind, model, density, groups=groups, budget=budget, round_to=round_to)
    end = min(0.8, math.sqrt(density)) if pruner.learn else density
    assert pruner.kept == pruner.budget.full
    sizes = [group.size for group in groups]
    watch, left, limits = Watch(pruner), [], sizes
    for phase in pruner.order:
        for step in channel_steps(pruner, phase, CUTS):
            counts = watch.see() if phase != "prune" else watch.see_learned(left)
            assert all(now <= then for now, then in zip(counts, limits, strict=True))
            now = pruner.budget.at(end ** (step / CUTS) if phase == "shrink" else density, budget)
            if phase == "prune" and kind == "held" and step < CUTS:
                continue  # the budget is on its way
            assert pruner.kept <= now.total
            if budget == "channels" and round_to == 1 and kind != "held":
                # The density of channels: the same share of each group.
                assert counts == [max(1, n - int((1 - now.density) * n)) for n in sizes]
            elif phase != "finetune":
                assert not room_for_more(now, counts, limits, round_to)
            if phase == "shrink":
                left, limits = watch.masks[-1], counts
    pruner.finalize()
    model.eval()
    with torch.no_grad():
        wanted = model(X)
    remove_channels(pruner)
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, rtol=1e-4, atol=1e-4)
