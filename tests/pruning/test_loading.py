"""States that anybody saves and loads: the network's own state_dict is enough to continue."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from learned_steps import attach_learned, batch_of, follow, network, sgd, step_by
from torch import Tensor, nn
from torch.nn import functional as F
from wide_network import A, B, C, Wide, wide_groups

from robust_plugin import (
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Pruner,
    dense_state_dict,
    finalize,
    load_dense_state_dict,
    sparsity,
)

KINDS = pytest.mark.parametrize("kind", ["hydra", "held"])
EPOCHS = {"prune": 3, "finetune": 3}
STEPS = 2


def optimizer_of(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def job(
    kind: str, *, stop: tuple[str, int] | None = None, saved: dict[str, Any] | None = None
) -> tuple[Pruner, dict[str, Any]]:
    """A loop with a checkpoint of its own: the states of model and optimizer, nothing of ours."""
    model = network()
    pruner = attach_learned(kind, model)
    if saved is not None:
        model.load_state_dict(saved["model"])
    for phase in pruner.phases(optimizer_of, epochs=EPOCHS, steps_per_epoch=STEPS):
        if saved is not None and phase.resumed:
            phase.optimizer.load_state_dict(saved["optimizer"])
        for epoch in phase:
            for step in range(STEPS):
                x, y = batch_of(10 * epoch + step)
                step_by(F.cross_entropy(phase.model(x), y), phase.optimizer)
            if (phase.name, epoch) == stop:
                states = {"model": model.state_dict(), "optimizer": phase.optimizer.state_dict()}
                return pruner, copy.deepcopy(states)
    return pruner, {"model": model.state_dict()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@KINDS
@pytest.mark.parametrize("stop", [("prune", 0), ("prune", 2), ("finetune", 0), ("finetune", 1)])
def test_a_loops_own_checkpoint_continues_to_the_bit(kind: str, stop: tuple[str, int]) -> None:
    whole, wanted = job(kind)
    _, saved = job(kind, stop=stop)
    again, found = job(kind, saved=saved)
    equal = same(wanted["model"], found["model"])
    assert equal
    assert whole.phase == again.phase == "finalized"


@KINDS
def test_the_best_state_of_the_prune_phase_loaded_at_the_end_keeps_the_budget(kind: str) -> None:
    _, early = job(kind, stop=("prune", 0))
    pruner, _ = job(kind, stop=("finetune", 1))
    if kind == "held":  # the budget falls over the phase
        assert sum(sparsity_of(early["model"])) > pruner.budget.total
    pruner.model.load_state_dict(early["model"])
    assert pruner.kept == pruner.budget.total
    pruner.finalize()
    weights = [p for p in pruner.model.parameters() if p.dim() >= 2]
    assert sum(int(w.count_nonzero()) for w in weights) == pruner.budget.total
    network().load_state_dict(pruner.model.state_dict())


def sparsity_of(state: dict[str, Tensor]) -> list[int]:
    plain = network()
    plain.load_state_dict(dense_state_dict(state))
    return [layer.kept for layer in sparsity(plain).layers]


@KINDS
@pytest.mark.parametrize("stop", [("prune", 1), ("finetune", 1)])
def test_a_saved_masked_state_becomes_a_dense_one_without_a_pruner(
    kind: str, stop: tuple[str, int]
) -> None:
    pruner, saved = job(kind, stop=stop)
    assert same(dense_state_dict(saved["model"]), dense_state_dict(pruner.model))
    assert any(not name.endswith("_extra_state") for name in saved["model"])
    plain = network()
    plain.load_state_dict(dense_state_dict(saved["model"]))
    twin = copy.deepcopy(pruner.model)
    finalize(twin)
    assert same(plain.state_dict(), twin.state_dict())
    assert same(dense_state_dict(plain.state_dict()), plain.state_dict())


def test_the_masks_of_channels_become_dense_too() -> None:
    model = Wide(A, B, C)
    pruner = MagnitudePruner(model, 0.5, groups=wide_groups(model))
    found = dense_state_dict(model.state_dict())
    assert same(found, dense_state_dict(model))
    pruner.finalize()
    assert same(found, model.state_dict())


def test_a_state_of_another_density_is_refused_before_anything_is_loaded() -> None:
    for kind in (HydraPruner, HarpPruner):
        theirs, model = network(), network()
        kind(theirs, 0.05)
        kind(model, 0.2)
        with torch.no_grad():
            theirs[0].bias.add_(1)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=r"keeps 0.05 .* and this one keeps 0.2 "):
            model.load_state_dict(theirs.state_dict())
        assert same(before, model.state_dict())


def test_a_pruner_that_learns_nothing_takes_the_density_of_a_state() -> None:
    theirs, model = network(), network()
    their_pruner, pruner = MagnitudePruner(theirs, 0.05), MagnitudePruner(model, 0.2)
    model.load_state_dict(theirs.state_dict())
    assert pruner.kept == their_pruner.kept == pruner.budget.total


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", [HydraPruner, HarpPruner, MagnitudePruner])
def test_dense_weights_loaded_after_attaching_are_as_if_loaded_before(
    kind: type[Pruner], strict: bool
) -> None:
    trained = network()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    rates = {"rates": "lamp"}
    first, late, other = network(), network(), network()
    first.load_state_dict(trained.state_dict())
    wanted = kind(first, 0.1, **rates)
    found = kind(late, 0.1, **rates), kind(other, 0.1, **rates)
    missing = late.load_state_dict(trained.state_dict(), strict=strict)
    assert not missing.missing_keys and not missing.unexpected_keys
    load_dense_state_dict(other, trained.state_dict())
    for pruner, model in zip(found, (late, other), strict=True):
        assert same(first.state_dict(), model.state_dict())
        for a, b in zip(wanted.masks, pruner.masks, strict=True):
            assert torch.equal(a.scores, b.scores) and torch.equal(a.mask, b.mask)


def test_dense_weights_loaded_in_a_phase_leave_the_masks() -> None:
    pruner, _ = job("hydra", stop=("prune", 1))
    masks = [mask.mask.clone() for mask in pruner.masks]
    pruner.model.load_state_dict(network().state_dict())
    assert all(torch.equal(a, b.mask) for a, b in zip(masks, pruner.masks, strict=True))


@KINDS
def test_resuming_in_finetuning_needs_no_prune_phase(kind: str) -> None:
    pruner, saved = job(kind, stop=("finetune", 0))
    model = network()
    resumed = attach_learned(kind, model)
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.SGD(resumed.set_phase("finetune"), lr=0.1)
    for one, other in zip(pruner.masks, resumed.masks, strict=True):
        assert torch.equal(one.mask, other.mask)
    step_by(F.cross_entropy(model(batch_of(0)[0]), batch_of(0)[1]), optimizer)
    resumed.finalize()
    assert sparsity(model).kept == pruner.budget.total


def test_averages_of_buffers_leave_masks_and_counts_alone() -> None:
    model = network()
    pruner = attach_learned("hydra", model)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    optimizer = sgd(pruner.set_phase("prune"))
    follow(pruner, optimizer)
    for step in range(3):
        x, y = batch_of(step)
        step_by(F.cross_entropy(model(x), y), optimizer)
        average.update_parameters(model)
    pruner.finalize(average)
    assert sparsity(average).kept == pruner.budget.total


def test_a_copy_that_is_loaded_does_not_move_the_pruner() -> None:
    pruner, saved = job("held", stop=("prune", 2))
    _, early = job("held", stop=("prune", 0))
    step = pruner.steps.step
    copy.deepcopy(pruner.model).load_state_dict(early["model"])
    assert pruner.steps.step == step
    assert isinstance(pruner.model, nn.Module) and saved


def test_a_state_from_before_the_first_step_is_named_as_the_cause() -> None:
    pruner, _ = job("hydra", stop=("prune", 1))
    early = network()
    attach_learned("hydra", early)
    pruner.model.load_state_dict(early.state_dict())
    with pytest.raises(ValueError, match="the state that was loaded last is from before its first"):
        pruner.set_phase("finetune")


def test_a_state_of_an_earlier_revision_is_refused_in_a_sentence() -> None:
    saved, model = nn.Linear(8, 4), nn.Linear(8, 4)
    former, _ = HydraPruner(saved, 0.5), HydraPruner(model, 0.5)
    del former.masks[0].progress["shrink"]  # as before there were schedules
    with pytest.raises(ValueError, match="saved by an earlier revision"):
        model.load_state_dict(saved.state_dict())
