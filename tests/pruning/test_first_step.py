"""What is checked at the first step of any optimizer that trains the network."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from pattern_networks import small
from phase_steps import OPTIMIZERS, attach, loss_of, states_equal
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from robust_plugin import Pruner
from robust_plugin.pruning import first_step
from robust_plugin.pruning.first_step import RefusedSteps, check_first_step


def sgd_of(*models: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)


def test_a_check_at_the_first_step_runs_once_beside_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a resume, where set_phase is called twice before the first step."""
    monkeypatch.setattr(first_step, "rank_and_world", lambda: (0, 2))
    model, other, checked = nn.Linear(2, 2), nn.Linear(2, 2), []
    for each in (model, other, model):
        check_first_step(each, checked.append)
    optimizers = [sgd_of(each) for each in (model, other)]
    optimizers[0].step()
    assert checked == [model, model]
    for optimizer in optimizers * 2:
        optimizer.step()
    assert checked == [model, model, other]


def test_a_single_process_is_not_checked() -> None:
    model, checked, before = nn.Linear(2, 2), [], set(_global_optimizer_post_hooks)
    check_first_step(model, checked.append)
    assert set(_global_optimizer_post_hooks) <= before
    sgd_of(model).step()
    assert checked == []


def test_steps_are_refused_until_the_end_and_of_this_network_alone() -> None:
    model, other, refused = nn.Linear(2, 2), nn.Linear(2, 2), RefusedSteps()
    refused.begin(model, "no step of this one")
    refused.begin(model, "not yet")  # replaces the first
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            sgd_of(model).step()
        with pytest.raises(ValueError, match="not yet"):
            sgd_of(other, model).step()
        sgd_of(other).step()
    frozen = sgd_of(model)
    model.requires_grad_(False)
    frozen.step()  # trains nothing of it
    model.requires_grad_(True)
    refused.end()
    refused.end()
    sgd_of(model).step()


def test_a_network_that_is_gone_leaves_no_hook() -> None:
    model, refused, before = nn.Linear(2, 2), RefusedSteps(), set(_global_optimizer_pre_hooks)
    refused.begin(model, "not yet")
    (own,) = set(_global_optimizer_pre_hooks) - before
    del model
    gc.collect()
    sgd_of(nn.Linear(2, 2)).step()
    check_first_step(nn.Linear(2, 2), print)  # the next phase of any pruner
    assert own not in _global_optimizer_pre_hooks


# --- a shrink phase without follow ----------------------------------------------------------------


def plain(pruner: Pruner) -> Callable[[], object]:
    return OPTIMIZERS["sgd"](pruner.set_phase("shrink")).step


def fused(pruner: Pruner) -> Callable[[], object]:
    return torch.optim.Adam(pruner.set_phase("shrink"), lr=0.1, fused=True).step


def all_parameters(pruner: Pruner) -> Callable[[], object]:
    pruner.set_phase("shrink")
    return torch.optim.AdamW(pruner.model.parameters(), lr=0.1).step


def one_of_two(pruner: Pruner) -> Callable[[], object]:
    groups = pruner.set_phase("shrink")
    return torch.optim.SGD(groups[0]["params"][:1], lr=0.1).step


def by_a_scaler(pruner: Pruner) -> Callable[[], object]:
    optimizer = OPTIMIZERS["sgd"](pruner.set_phase("shrink"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    pruner.model.zero_grad()
    scaler.scale(loss_of(pruner, 0)).backward()
    return lambda: scaler.step(optimizer)


def from_before(pruner: Pruner) -> Callable[[], object]:
    optimizer = sgd_of(pruner.model)
    pruner.set_phase("shrink")
    return optimizer.step


@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
@pytest.mark.parametrize(
    "step_of", [plain, fused, all_parameters, one_of_two, by_a_scaler, from_before]
)
def test_a_loop_that_forgets_follow_ends_at_its_first_step(
    kind: str, step_of: Callable[[Pruner], Callable[[], object]]
) -> None:
    pruner = attach(kind, small(), 0.1)
    step = step_of(pruner)
    if step_of is not by_a_scaler:
        loss_of(pruner, 0).backward()
    before = {name: value.clone() for name, value in pruner.model.state_dict().items()}
    for _ in range(2):
        with pytest.raises(ValueError, match="shrink phase: no optimizer is followed. Call pruner"):
            step()
    assert states_equal(pruner.model.state_dict(), before)


def test_following_before_the_first_step_is_enough() -> None:
    before = set(_global_optimizer_pre_hooks)
    pruner = attach("magnitude", small(), 0.1)
    optimizer = OPTIMIZERS["sgd"](pruner.set_phase("shrink"))
    assert len(set(_global_optimizer_pre_hooks) - before) == 1
    with pytest.raises(ValueError, match="the optimizer lacks"):
        pruner.follow(torch.optim.SGD([torch.zeros(1)], lr=0.1), epochs=1, steps_per_epoch=2)
    with pytest.raises(ValueError, match="no optimizer is followed"):
        optimizer.step()
    pruner.follow(optimizer, epochs=1, steps_per_epoch=2)
    assert set(_global_optimizer_pre_hooks) <= before
    pruner.set_phase("shrink")  # as after a state was loaded: the optimizer stays followed
    loss_of(pruner, 0).backward()
    optimizer.step()
    optimizer.step()
    assert pruner.steps.step == 2
    finetuning = OPTIMIZERS["sgd"](pruner.set_phase("finetune"))
    finetuning.step()
    pruner.finalize()
    assert set(_global_optimizer_pre_hooks) <= before


def test_without_steps_nothing_is_refused() -> None:
    """Attacks, evaluation and gradients before the optimizer is made."""
    pruner = attach("magnitude", small(), 0.1)
    pruner.set_phase("shrink")
    loss_of(pruner, 0).backward()
    assert pruner.model[8].weight.grad is not None
    other = nn.Linear(3, 3)
    sgd_of(other).step()
