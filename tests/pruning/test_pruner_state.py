"""What a pruner holds between its phases: what it waits for, what it warns of, what it forgets."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from pattern_networks import small
from phase_steps import OPTIMIZERS, SIZES, attach, kept, loss_of, states_equal, steps_of
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, Pruner, finalize
from robust_plugin.masks.group_mask import GroupMask

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")

FIRST = pytest.mark.parametrize(
    ("kind", "schedule", "phase"),
    [
        ("magnitude", "cubic", "shrink"),
        ("gradual", "cubic", "shrink"),
        ("hydra", "at_once", "prune"),
        ("held", "at_once", "prune"),
    ],
)


@FIRST
def test_training_before_the_first_phase_warns(kind: str, schedule: str, phase: str) -> None:
    pruner = attach(kind, small(), 0.1, schedule=schedule)
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.warns(UserWarning, match=rf"call pruner.set_phase\('{phase}'\) first") as said:
        torch.nn.functional.cross_entropy(pruner.model(x), y).backward()
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.nn.functional.cross_entropy(pruner.model(x), y).backward()  # once is enough


@FIRST
def test_a_network_that_was_only_attached_is_finalized_with_a_warning(
    kind: str, schedule: str, phase: str
) -> None:
    pruner = attach(kind, small(), 0.1, schedule=schedule)
    twin = copy.deepcopy(pruner.model)
    with pytest.warns(UserWarning, match=f"run the phase '{phase}' first"):
        finalize(twin)
    if schedule != "at_once":
        weights = [twin[i].weight for i in (0, 3, 6, 8)]
        assert sum(int(w.count_nonzero()) for w in weights) == sum(SIZES)


def test_magnitude_at_once_waits_for_nothing() -> None:
    pruner = MagnitudePruner(small(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(pruner, 0).backward()
        finalize(copy.deepcopy(pruner.model))


def test_a_loaded_state_is_waited_for_no_more() -> None:
    begun, fresh = (attach("magnitude", small(), 0.1) for _ in range(2))
    for _ in steps_of(begun, "shrink", steps=4, announced=8):
        pass
    fresh.model.load_state_dict(begun.model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finalize(copy.deepcopy(fresh.model))
    # Going back to a state of before the first phase, it waits again.
    begun.load_state_dict(attach("magnitude", small(), 0.1).state_dict())
    assert begun.phase == "attached" and {mask.waits for mask in begun.masks} == {"shrink"}


def test_a_pruner_that_nobody_holds_leaves_with_its_hooks() -> None:
    model = small()
    pruner = attach("gradual", model, 0.1)
    gone = weakref.ref(pruner)
    pruner.set_phase("shrink")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    del pruner
    gc.collect()
    assert gone() is None
    model.load_state_dict(state)


@pytest.mark.parametrize("kind", ["magnitude", "hydra", "held"])
def test_masks_chosen_by_hand_do_not_run_ahead_of_the_schedule(kind: str) -> None:
    pruner = attach(kind, small(), 0.1)
    for _ in steps_of(pruner, "shrink", steps=5, announced=8):
        pruner.update_masks()
    end = 0.1 if kind == "magnitude" else 0.2
    assert pruner.kept == kept(SIZES, end**0.5)
    assert not pruner.progress.has_learned  # nothing but magnitudes


@pytest.mark.parametrize("kind", [HydraPruner, HarpPruner])
def test_scores_by_hand_are_the_learning_after_shrinking(kind: type[Pruner]) -> None:
    pruner = kind(small(), 0.1, schedule="cubic")
    for _ in steps_of(pruner, "shrink"):
        pass
    pruner.set_phase("prune")
    left = [mask.scores.detach() != 0 for mask in pruner.masks]
    for mask in pruner.masks:
        mask.scores.data.mul_(torch.rand_like(mask.scores) + 0.1)
    pruner.update_masks()
    for mask, before in zip(pruner.masks, left, strict=True):
        assert not (mask.mask & ~before).any()
        wanted = mask.scores.detach().abs().flatten().sort(descending=True, stable=True)
        assert set(wanted.indices[: mask.kept].tolist()) == set(
            mask.mask.flatten().nonzero().flatten().tolist()
        )
    pruner.set_phase("finetune")
    assert pruner.kept == pruner.budget.total


def test_properties_show_the_state_and_cannot_be_written() -> None:
    pruner = attach("held", small(), 0.1)
    for name in ("phase", "budget", "control", "progress", "steps", "kept", "densities"):
        with pytest.raises(AttributeError):
            setattr(pruner, name, None)
    assert pruner.budget.most == ()
    for _ in steps_of(pruner, "shrink"):
        assert pruner.steps is pruner.progress.shrink
    before = pruner.control
    pruner.set_phase("prune")
    assert pruner.steps is pruner.progress.prune and pruner.control is not before
    assert pruner.budget.most == tuple(int((m.scores != 0).sum()) for m in pruner.masks)


# --- averages of weights in the shrink phase -----------------------------------------------------


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
def test_an_average_has_the_masks_of_now_in_the_shrink_phase(kind: str, use_buffers: bool) -> None:
    pruner = attach(kind, small(), 0.1)
    average = AveragedModel(
        pruner.model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers
    )
    hand = {name: p.detach().clone() for name, p in pruner.model.named_parameters()}
    for step in steps_of(pruner, "shrink"):
        average.update_parameters(pruner.model)
        for name, p in pruner.model.named_parameters():
            # The first update copies.
            hand[name] = p.detach().clone() if step == 1 else 0.5 * hand[name] + 0.5 * p.detach()
        pruner.lend_masks(average)
        theirs = [m for m in average.modules() if isinstance(m, GroupMask)]
        for mask, other, name in zip(pruner.masks, theirs, ("0", "3", "6", "8"), strict=True):
            assert torch.equal(mask.mask, other.mask) and mask.kept == other.kept
            shown = average.module.get_submodule(name).weight.detach()
            assert torch.equal(shown, hand[f"{name}.weight"] * mask.mask)
    before = average.eval()(torch.ones(2, 1, 8, 8))
    if kind == "hydra":
        with pytest.raises(ValueError, match="has learned nothing yet"):
            pruner.finalize(average)
        finalize(average)  # a network of the shrink phase, on purpose
    else:
        pruner.finalize(average)
    assert torch.equal(average(torch.ones(2, 1, 8, 8)), before)
    ones = [average.module[i].weight.count_nonzero() for i in (0, 3, 6, 8)]
    assert sum(map(int, ones)) == kept(SIZES, 0.1 if kind == "magnitude" else 0.2)
    assert pruner.phase == "shrink"


def test_an_average_of_all_phases_ends_at_the_budget() -> None:
    pruner = attach("gradual", small(), 0.1)
    average = AveragedModel(pruner.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for phase in pruner.order:
        for _ in steps_of(pruner, phase):
            average.update_parameters(pruner.model)
    pruner.finalize(average)
    ones = [average.module[i].weight.count_nonzero() for i in (0, 3, 6, 8)]
    assert sum(map(int, ones)) == kept(SIZES, 0.1) == pruner.kept


def test_a_copy_goes_its_own_way() -> None:
    """A deep copy of the network keeps the masks of its moment while the network shrinks on."""
    pruner: Any = attach("magnitude", small(), 0.1)
    for _ in steps_of(pruner, "shrink", steps=4, announced=8):
        pass
    twin = copy.deepcopy(pruner.model)
    state = {name: value.clone() for name, value in twin.state_dict().items()}
    optimizer = OPTIMIZERS["sgd"](pruner.set_phase("shrink"))
    pruner.follow(optimizer, epochs=4, steps_per_epoch=2)
    for step in range(4):
        loss_of(pruner, step).backward()
        optimizer.step()
    assert states_equal(twin.state_dict(), state)
    finalize(twin)
    ones = [twin[i].weight.count_nonzero() for i in (0, 3, 6, 8)]
    assert sum(map(int, ones)) == kept(SIZES, 0.1**0.5) > pruner.kept
