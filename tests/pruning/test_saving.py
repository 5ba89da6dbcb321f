"""States of pruners whose density falls along a schedule: each moment continues to the bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pattern_networks import small
from phase_steps import (
    KINDS,
    OPTIMIZERS,
    SIZES,
    attach,
    kept,
    loss_of,
    states_equal,
    steps_of,
)
from torch import nn

from robust_plugin import Geometric, MagnitudePruner, Pruner
from robust_plugin.pruning import checkpoint
from robust_plugin.pruning.phase_run import PhaseRun

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")

MAKERS = {kind: OPTIMIZERS["adam" if kind in ("magnitude", "gradual") else "sgd"] for kind in KINDS}
EPOCHS = {"shrink": 3, "prune": 2, "finetune": 2}
STEPS = 3  # per epoch
MIDDLE_AND_END = [
    (kind, (phase, epoch))
    for kind in KINDS
    for phase, last in EPOCHS.items()
    for epoch in (0, last - 1)
    if kind != "magnitude" or phase != "prune"
]


def train_on(
    pruner: Pruner,
    make: Any,
    resume: Callable[[PhaseRun], None] = lambda phase: None,
    *,
    stop: tuple[str, int] | None = None,
) -> torch.optim.Optimizer | None:
    """Train the phases that are left, until ``stop``, and return the optimizer of then."""
    lengths = {name: EPOCHS[name] for name in pruner.order}
    for phase in pruner.phases(make, epochs=lengths, steps_per_epoch=STEPS):
        if phase.resumed:
            resume(phase)
        for epoch in phase:
            for step in range(STEPS):
                phase.optimizer.zero_grad()
                loss_of(pruner, STEPS * epoch + step).backward()
                phase.optimizer.step()
            if (phase.name, epoch) == stop:
                return phase.optimizer
    return None


def job(kind: str, *, stop: tuple[str, int] | None = None) -> tuple[Pruner, Any]:
    """A pruner that is trained until ``stop``, and the optimizer of then."""
    pruner = attach(kind, small(), 0.1, rates="lamp")
    return pruner, train_on(pruner, MAKERS[kind], stop=stop)


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    """The networks at the end of uninterrupted jobs."""
    return {kind: job(kind)[0].model.state_dict() for kind in KINDS}


@pytest.mark.parametrize(("kind", "stop"), MIDDLE_AND_END)
def test_the_networks_own_state_continues_to_the_bit(
    whole: dict[str, dict[str, Any]], kind: str, stop: tuple[str, int]
) -> None:
    pruner, live = job(kind, stop=stop)
    model, state = copy.deepcopy(pruner.model.state_dict()), copy.deepcopy(live.state_dict())
    again = attach(kind, small(3), 0.1, rates="lamp")
    again.model.load_state_dict(model)
    assert again.budget == pruner.budget
    train_on(again, MAKERS[kind], lambda phase: phase.optimizer.load_state_dict(state))
    assert again.phase == "finalized"
    assert states_equal(again.model.state_dict(), whole[kind])


@pytest.mark.parametrize(("kind", "stop"), MIDDLE_AND_END)
def test_a_checkpoint_continues_to_the_bit(
    whole: dict[str, dict[str, Any]], tmp_path: Path, kind: str, stop: tuple[str, int]
) -> None:
    pruner, live = job(kind, stop=stop)
    checkpoint.save(tmp_path / "last", model=pruner.model, pruner=pruner, optimizer=live)
    saved = checkpoint.load(tmp_path / "last")
    again = attach(kind, small(3), 0.1, rates="lamp")
    saved.restore(model=again.model, pruner=again)
    assert again.state_dict() == pruner.state_dict() and again.budget == pruner.budget
    assert states_equal(again.model.state_dict(), pruner.model.state_dict())
    train_on(again, MAKERS[kind], lambda phase: saved.restore(optimizer=phase.optimizer))
    assert states_equal(again.model.state_dict(), whole[kind])


@pytest.mark.parametrize(
    ("kind", "later"), [(kind, stop[0]) for kind, stop in MIDDLE_AND_END if stop[1] == 0]
)
def test_a_live_pruner_goes_back_to_an_earlier_phase(
    whole: dict[str, dict[str, Any]], kind: str, later: str, tmp_path: Path
) -> None:
    """As after a divergence; the optimizer of the later phase is refused in the earlier one."""
    early, saved = job(kind, stop=("shrink", 0))
    path = tmp_path / "early"
    checkpoint.save(path, model=early.model, pruner=early, optimizer=saved)
    pruner, late = job(kind, stop=(later, 1))
    file = checkpoint.load(path)
    file.restore(model=pruner.model, pruner=pruner)
    assert pruner.state_dict() == early.state_dict()
    assert states_equal(pruner.model.state_dict(), early.model.state_dict())
    if later != "shrink":
        with pytest.raises(ValueError, match="the optimizer lacks|has not shrunk the network"):
            late.step()
    train_on(pruner, MAKERS[kind], lambda phase: file.restore(optimizer=phase.optimizer))
    assert states_equal(pruner.model.state_dict(), whole[kind])


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("kind", ["held", "hinge", "rates"])
def test_no_learned_rate_exceeds_what_shrinking_has_left(kind: str, resumes: bool) -> None:
    """As if the loss had one layer dense at the cost of all others, also after a resume."""
    pruner, _ = job(kind, stop=("shrink", 2))
    left = [mask.mask.clone() for mask in pruner.masks]
    pruner.set_phase("prune")
    if resumes:
        state = pruner.model.state_dict()
        pruner = attach(kind, small(3), 0.1, rates="lamp")
        pruner.model.load_state_dict(state)
    optimizer = OPTIMIZERS["sgd"](pruner.set_phase("prune"))
    pruner.follow(optimizer, epochs=5, steps_per_epoch=STEPS)
    for step in range(15):
        optimizer.zero_grad()
        loss_of(pruner, step).backward()
        for mask, pull in zip(pruner.masks, (-9.0, 9.0, 9.0, 9.0), strict=True):
            assert mask.rate is not None
            mask.rate.grad = torch.tensor(pull)
        optimizer.step()
        for mask, before in zip(pruner.masks, left, strict=True):
            assert not (mask.mask & ~before).any()
            assert mask.kept <= int(before.sum())
    assert pruner.masks[0].kept == int(left[0].sum())  # the layer keeps all that it may
    pruner.finalize()
    assert pruner.kept == pruner.budget.total


@pytest.mark.parametrize("kind", ["hydra", "held"])
@pytest.mark.parametrize("then", ["step", "finetune", "finalize"])
def test_a_state_of_the_shrink_phase_does_not_replace_what_was_learned(
    kind: str, then: str
) -> None:
    """A loop that loads its "best" network at the end must not take one of before the last cut."""
    early, _ = job(kind, stop=("shrink", 2))
    pruner, live = job(kind, stop=("prune", 1))
    pruner.model.load_state_dict(early.model.state_dict())
    with pytest.raises(ValueError, match="is of the shrink phase, and .* is in phase 'prune'; att"):
        if then == "step":
            live.step()
        pruner.finalize() if then == "finalize" else pruner.set_phase("finetune")
    late, _ = job(kind, stop=("finetune", 0))
    late.model.load_state_dict(early.model.state_dict())
    with pytest.raises(ValueError, match="is of the shrink phase, and .* in phase 'finetune'"):
        late.finalize()


def test_a_state_of_the_shrink_phase_is_cut_at_the_end_of_magnitude_pruning() -> None:
    early, _ = job("magnitude", stop=("shrink", 1))
    pruner, _ = job("magnitude", stop=("finetune", 1))
    pruner.model.load_state_dict(early.model.state_dict())
    assert pruner.kept == early.kept > pruner.budget.total
    with pytest.warns(UserWarning, match="ends at step 6 of 9"):
        pruner.finalize()
    assert pruner.kept == pruner.budget.total == kept(SIZES, 0.1)


@pytest.mark.parametrize("load", ["the network's state", "the pruner's state"])
def test_a_pruner_that_learns_nothing_takes_the_density_of_a_state_while_it_shrinks(
    load: str,
) -> None:
    theirs = attach("magnitude", small(), 0.05)
    for _ in steps_of(theirs, "shrink", steps=4, announced=8):
        pass
    pruner = attach("magnitude", small(), 0.2)
    pruner.model.load_state_dict(theirs.model.state_dict())
    if load == "the pruner's state":
        pruner.load_state_dict(theirs.state_dict())
    assert pruner.budget == theirs.budget
    for own in (theirs, pruner):
        for _ in steps_of(own, "shrink", steps=4, announced=8):
            pass
        assert own.kept == own.budget.total == kept(SIZES, 0.05)
    assert states_equal(theirs.model.state_dict(), pruner.model.state_dict())


def test_given_rates_do_not_take_another_density() -> None:
    def attached(rate: float) -> MagnitudePruner:
        return MagnitudePruner(nn.Sequential(nn.Linear(8, 8)), rates={"0.weight": rate})

    for load in (
        lambda pruner, state: pruner.model.load_state_dict(state.model.state_dict()),
        lambda pruner, state: pruner.load_state_dict(state.state_dict()),
    ):
        with pytest.raises(ValueError, match="the state keeps 0.5, and the rates or the"):
            load(attached(0.25), attached(0.5))
    attached(0.25).load_state_dict(attached(0.25).state_dict())


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        ({"schedule": "cubic"}, {}, r"schedule was Cubic\(cuts=100, until=1.0\), here AtOnce\(\)"),
        ({}, {"schedule": Geometric(3)}, r"schedule was AtOnce\(\), here Geometric\(cuts=3"),
        (
            {"schedule": "cubic", "last_cut": 0.3},
            {"schedule": "cubic"},
            "last_cut was 0.3, here 0.5",
        ),
    ],
)
def test_states_of_other_schedules_are_refused(
    theirs: dict[str, Any], ours: dict[str, Any], says: str
) -> None:
    made = KINDS["hydra"][0]
    with pytest.raises(ValueError, match=says):
        made(small(), 0.1, **ours).load_state_dict(made(small(), 0.1, **theirs).state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_plain_json_and_keep_their_shape_through_all_phases(kind: str) -> None:
    """Averages of states, and loops that load into preallocated tensors, need equal shapes."""
    pruner = attach(kind, small(), 0.1, rates="lamp")
    shapes = {name: value.shape for name, value in pruner.model.state_dict().items()}
    for phase in pruner.order:
        for _ in steps_of(pruner, phase):
            state = json.loads(json.dumps(pruner.state_dict()))
            assert state == pruner.state_dict() and state["phase"] == phase
            now = {name: value.shape for name, value in pruner.model.state_dict().items()}
            assert now == shapes


def test_deep_networks_keep_the_shape_of_their_states_too() -> None:
    """Sixty groups, each with large counts and logits of many digits."""
    layers = [nn.Linear(64, 64) for _ in range(60)]
    pruner = attach("held", nn.Sequential(*layers), 0.3)
    shape = pruner.masks[0].get_extra_state().shape
    optimizer = torch.optim.SGD(pruner.set_phase("shrink"), lr=1e-3)
    pruner.follow(optimizer, epochs=10_000, steps_per_epoch=10_000)
    pruner.progress.shrink.step = 10**8 - 1
    optimizer.step()
    pruner.set_phase("prune")
    pruner.follow(
        torch.optim.SGD(pruner.set_phase("prune"), lr=1e-3), epochs=10**4, steps_per_epoch=10**4
    )
    assert len(json.dumps(pruner.state_dict()["control"])) > 60 * 18
    assert pruner.masks[0].get_extra_state().shape == shape


def test_the_dense_state_before_the_first_step_decides_the_masks_of_the_start() -> None:
    """Weights that are loaded after the pruner was attached, as most loops do it."""
    trained = small(7)
    first = attach("magnitude", copy.deepcopy(trained), 0.1, schedule=lambda t, k: max(k, 0.3 - t))
    late = attach("magnitude", small(), 0.1, schedule=lambda t, k: max(k, 0.3 - t))
    late.model.load_state_dict(trained.state_dict())
    assert states_equal(first.model.state_dict(), late.model.state_dict())
    assert first.kept == kept(SIZES, 0.3)
