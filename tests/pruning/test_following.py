"""Followed optimizers in the shrink phase: what counts as a step, and what a step does."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pattern_networks import small
from phase_steps import (
    CUTS,
    LENGTHS,
    OPTIMIZERS,
    SIZES,
    attach,
    batch_of,
    go_through,
    kept,
    loss_of,
    states_equal,
    steps_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import GradualPruner, MagnitudePruner, Pruner
from robust_plugin.masks.group_mask import GroupMask

SHRINKING = pytest.mark.parametrize("kind", ["magnitude", "hydra"])


def followed(pruner: Pruner, make: Any = OPTIMIZERS["sgd"]) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = make(pruner.set_phase("shrink"))
    pruner.follow(optimizer, epochs=4, steps_per_epoch=2)
    return optimizer


def masks_of(pruner: Pruner) -> list[Tensor]:
    return [mask.mask.clone() for mask in pruner.masks]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@SHRINKING
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(kind: str, fused: bool) -> None:
    def make(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=fused)

    pruner, plain = attach(kind, small(), 0.1), attach(kind, small(), 0.1)
    optimizer, other = followed(pruner, make), followed(plain, make)
    scaler, done = torch.amp.GradScaler("cpu", init_scale=2.0**10), 0
    for step in range(9):
        skipped = step in (1, 4)
        optimizer.zero_grad()
        scaler.scale(loss_of(pruner, done) * (math.inf if skipped else 1.0)).backward()
        before = masks_of(pruner)
        scaler.step(optimizer)
        scaler.update()
        if skipped:
            assert same(masks_of(pruner), before)
        else:
            other.zero_grad()
            loss_of(plain, done).backward()
            other.step()
            done += 1
        assert pruner.steps.step == done
        assert same(masks_of(pruner), masks_of(plain))
    assert done == 7 and pruner.kept == plain.kept < sum(SIZES)


@SHRINKING
def test_accumulated_batches_are_one_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are chosen at cuts alone, and once for each group."""
    pruner = attach(kind, small(), 0.1)
    optimizer = followed(pruner)
    calls, choose = [], GroupMask.choose

    def counted(self: GroupMask, count: int | None = None) -> None:
        calls.append(count)
        choose(self, count)

    monkeypatch.setattr(GroupMask, "choose", counted)
    for step in range(8):
        optimizer.zero_grad()
        for micro in range(3):
            x, y = batch_of(3 * step + micro)
            (F.cross_entropy(pruner.model(x), y) / 3).backward()
        assert len(calls) == 4 * (step * CUTS // LENGTHS["shrink"])
        optimizer.step()
    assert pruner.steps.step == 8 and len(calls) == 4 * CUTS


def test_accumulation_equals_one_batch_of_all() -> None:
    def run(parts: int) -> Pruner:
        model = small().double()
        del model[1]  # BatchNorm sees each part alone
        pruner = MagnitudePruner(model, 0.1, schedule="cubic", rates="lamp")
        optimizer = followed(pruner)
        for step in range(8):
            x, y = batch_of(step, 12)
            optimizer.zero_grad()
            for xs, ys in zip(x.double().chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(model(xs), ys) / parts).backward()
            optimizer.step()
        return pruner

    whole, parts = run(1), run(4)
    assert same(masks_of(whole), masks_of(parts))


def test_compiled_networks_shrink_as_eager_ones_do() -> None:
    """In one graph, whose masks change between the steps without a new compilation."""
    torch._dynamo.reset()
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compilations.append(1)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def run(wrap: Callable[[nn.Module], nn.Module]) -> tuple[list[Tensor], Pruner]:
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)
        pruner, seen = GradualPruner(nn.Sequential(*layers), 0.1), []
        for phase in pruner.order:
            optimizer = OPTIMIZERS["sgd"](pruner.set_phase(phase))
            if phase != "finetune":
                pruner.follow(optimizer, epochs=2, steps_per_epoch=3)
            outer = wrap(pruner.model)
            for step in range(6):
                optimizer.zero_grad()
                loss_of(pruner, step, outer).backward()
                optimizer.step()
                seen += masks_of(pruner)
        return seen, pruner

    eager, plain = run(lambda model: model)
    made, pruner = run(lambda model: torch.compile(model, backend=backend, fullgraph=True))
    assert 1 <= len(compilations) <= 3  # at most one for each phase
    assert same(eager, made)
    for one, other in zip(plain.model.parameters(), pruner.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class Inside:
    """An optimizer inside of a wrapper, as accelerate has it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


def test_several_optimizers_make_one_step_together() -> None:
    pruner = attach("magnitude", small(), 0.1)
    (group,) = pruner.set_phase("shrink")
    parts = group["params"][:3], group["params"][3:]
    first, last = (OPTIMIZERS["sgd"]([{"params": part}]) for part in parts)
    with pytest.raises(ValueError, match="the optimizer lacks"):
        pruner.follow(last, epochs=4, steps_per_epoch=1)
    pruner.follow([first, Inside(last)], epochs=4, steps_per_epoch=1)
    plain = attach("magnitude", small(), 0.1)
    single = OPTIMIZERS["sgd"](plain.set_phase("shrink"))
    plain.follow(single, epochs=4, steps_per_epoch=1)
    for step in range(4):
        for each, optimizers in ((pruner, (first, last)), (plain, (single,))):
            each.model.zero_grad()
            loss_of(each, step).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert pruner.steps.step == step + 1
    assert states_equal(pruner.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("bad", [{}, {"epochs": 3}, {"steps_per_epoch": 3}, {"epochs": 0}])
def test_lengths_are_needed_while_the_density_falls(bad: dict[str, int]) -> None:
    pruner = attach("magnitude", small(), 0.1)
    optimizer = OPTIMIZERS["sgd"](pruner.set_phase("shrink"))
    with pytest.raises(ValueError, match="epochs is .* the density and learned rates move over"):
        pruner.follow(optimizer, **bad)
    assert pruner.steps.total == 0
    with pytest.raises(ValueError, match="no optimizer is followed"):
        optimizer.step()


def test_follow_names_the_first_phase_of_a_pruner() -> None:
    for kind, schedule, fix in (
        ("gradual", "cubic", r"call set_phase\('shrink'\) first"),
        ("hydra", "at_once", r"call set_phase\('prune'\) first"),
        ("magnitude", "cubic", r"call set_phase\('shrink'\) first"),
        ("magnitude", "at_once", "leave it out. Fine-tuning needs no follow"),
    ):
        pruner = attach(kind, small(), 0.1, schedule=schedule)
        optimizer = OPTIMIZERS["sgd"](pruner.model.parameters())
        with pytest.raises(ValueError, match=f"the phase is 'attached'; {fix}"):
            pruner.follow(optimizer, epochs=1, steps_per_epoch=1)
    pruner.set_phase("finetune")
    with pytest.raises(ValueError, match="the phase is 'finetune'; leave it out"):
        pruner.follow(optimizer)


def test_the_optimizer_of_the_shrink_phase_in_later_phases() -> None:
    """It holds all that fine-tuning trains, and nothing that the prune phase learns."""
    pruner = attach("hydra", small(), 0.1)
    optimizer = followed(pruner)
    for step in range(8):
        optimizer.zero_grad()
        loss_of(pruner, step).backward()
        optimizer.step()
    groups = pruner.set_phase("prune")
    with pytest.raises(ValueError, match="the optimizer lacks 4 parameters of this phase"):
        optimizer.step()
    learning = OPTIMIZERS["sgd"](groups)
    pruner.follow(learning)
    loss_of(pruner, 0).backward()
    learning.step()
    pruner.set_phase("finetune")
    steps = pruner.progress.shrink.step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert pruner.progress.shrink.step == steps
    with pytest.raises(ValueError, match="the optimizer lacks"):
        learning.step()


def test_a_layer_that_was_replaced_is_named_at_the_first_step() -> None:
    model = small()
    pruner = attach("magnitude", model, 0.1)
    optimizer = followed(pruner)
    model[8] = nn.Linear(32, 8)
    with pytest.raises(ValueError, match="the layer '8' that the pruner masks is no part"):
        optimizer.step()


def test_frozen_weights_are_pruned_and_stay_frozen() -> None:
    model = small()
    model[3].weight.requires_grad_(False)
    before = model[3].weight.detach().clone()
    pruner = attach("magnitude", model, 0.1)
    for _, _ in go_through(pruner):
        pass
    weight, mask = model[3].weight, pruner.masks[1].mask
    assert torch.equal(weight[mask], before[mask]) and not weight[~mask].any()
    pruner.finalize()
    assert not model[3].weight.requires_grad and pruner.kept == kept(SIZES, 0.1)


def test_a_copy_does_not_shrink_the_network() -> None:
    """Steps of an optimizer of a deep copy change masks of neither."""
    pruner = attach("magnitude", small(), 0.1)
    for _ in steps_of(pruner, "shrink", steps=4, announced=8):
        pass
    twin = copy.deepcopy(pruner.model)
    before = masks_of(pruner)
    optimizer = OPTIMIZERS["sgd"](twin.parameters())
    loss_of(pruner, 0, twin).backward()
    optimizer.step()
    assert same(masks_of(pruner), before) and pruner.steps.step == 4
