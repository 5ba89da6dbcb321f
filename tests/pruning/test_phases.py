"""The phases of a pruner: what each trains, their order, and what is legal in each."""

import pytest
import torch
from pattern_networks import small
from phase_steps import OPTIMIZERS, SIZES, kept, loss_of, steps_of
from phase_steps import attach as attach_falling
from unchanged import check_unchanged, snapshot

from robust_plugin import GradualPruner, HarpPruner, HydraPruner, MagnitudePruner, finalize
from robust_plugin.masks.masked_layer import is_masked
from robust_plugin.pruning.phases import phase_order

# A few steps do not take the rates to their target, and the pruner warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


def requires_grad(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["hydra", "rates", "held", "hinge"])
def test_phases_train_what_the_papers_train(cnn, attach, kind):
    model = cnn()
    model[6].bias.requires_grad_(False)  # the user's own frozen parameter
    model[1].bias.requires_grad_(False)
    pruner = attach(kind, model, 0.1)
    groups = pruner.set_phase("prune")
    masks = {"hydra": {"scores"}, "rates": {"rate"}}.get(kind, {"scores", "rate"})
    wanted = {"1.weight"} | {f"{i}.pruner_masks.0.group.{m}" for i in (0, 3, 6) for m in masks}
    assert requires_grad(model) == wanted
    assert [group.get("weight_decay") for group in groups] == [0.0, None]
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    pruner.update_masks()  # as after scores were written by hand
    groups = pruner.set_phase("finetune")
    names = {f"{i}.{key}" for i in (0, 1, 3, 6) for key in ("weight", "bias")}
    assert requires_grad(model) == names - {"6.bias", "1.bias"}
    assert len(groups) == 1 and len(groups[0]["params"]) == 6
    pruner.finalize()
    assert requires_grad(model) == names - {"6.bias", "1.bias"}


def test_prune_phase_moves_scores_and_norms_only(cnn, batch, attach, train):
    model = cnn()
    pruner = attach("hydra", model, 0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(pruner, "prune")
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    scores = {f"{i}.pruner_masks.0.group.scores" for i in (0, 3, 6)}
    norms = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert {name for name in changed if not name.endswith("_extra_state")} == scores | norms


def test_finetune_phase_moves_no_mask_and_leaves_pruned_weights_at_zero(cnn, attach, train):
    model = cnn()
    pruner = attach("hydra", model, 0.1)
    train(pruner, "prune")
    train(pruner, "finetune", steps=1)
    masks = [m.mask.clone() for m in pruner.masks]
    scores = [m.scores.detach().clone() for m in pruner.masks]
    train(pruner, "finetune", steps=5, lr=0.5)
    for mask, chosen, values, i in zip(pruner.masks, masks, scores, (0, 3, 6), strict=True):
        assert torch.equal(mask.mask, chosen) and torch.equal(mask.scores, values)
        assert not model[i].weight[~chosen].any()


def test_order_of_the_phases(cnn, attach):
    hydra, magnitude = attach("hydra", cnn(), 0.1), attach("magnitude", cnn(), 0.1)

    def refused(pruner, phase, says):
        before = snapshot(pruner.model)
        with pytest.raises(ValueError, match=says):
            pruner.set_phase(phase)
        check_unchanged(pruner.model, before)

    refused(hydra, "finetune", "has learned nothing yet; run the phase 'prune'")
    refused(hydra, "training", "phase is 'training'; legal: 'prune', then 'finetune'")
    refused(magnitude, "prune", "MagnitudePruner learns nothing, so it has no prune phase")
    hydra.set_phase("prune")
    refused(hydra, "finetune", "learned nothing in its prune phase: no optimizer is followed")
    hydra.update_masks()
    hydra.set_phase("finetune")
    refused(hydra, "prune", "'prune' cannot follow 'finetune'")
    hydra.set_phase("finetune")
    hydra.finalize()
    refused(hydra, "finetune", "'finetune' cannot follow 'finalized'")
    with pytest.raises(ValueError, match="found no masked layer"):
        finalize(hydra.model)


def test_what_learned_nothing_is_not_finalized(cnn):
    for kind in (HydraPruner, HarpPruner):
        model = cnn()
        pruner = kind(model, 0.2)
        with pytest.raises(ValueError, match="has learned nothing yet"):
            pruner.finalize()
        assert pruner.phase == "attached" and is_masked(model[0])


@pytest.mark.parametrize("kind", ["held", "hinge", "rates", "hydra"])
def test_finalize_straight_from_the_prune_phase_is_on_budget(cnn, attach, train, kind):
    pruner = attach(kind, cnn(), 0.05)
    train(pruner, "prune")
    pruner.finalize()
    kept = sum(int(pruner.model[i].weight.count_nonzero()) for i in (0, 3, 6))
    assert kept == pruner.budget.total == 4 + 15 + 64


def test_a_density_is_not_raised_nor_changed_after_the_end(cnn):
    """A pruned weight is zero, so that no magnitude says which of them should come back."""
    model = cnn()
    pruner = MagnitudePruner(model, 0.2)
    masks = [mask.mask.clone() for mask in pruner.masks]
    with pytest.raises(ValueError, match="density is 0.5, and 0.2 is kept: .* Legal: at most 0.2"):
        pruner.set_density(0.5)
    assert all(torch.equal(m.mask, b) for m, b in zip(pruner.masks, masks, strict=True))
    assert pruner.budget.density == 0.2
    pruner.set_density(0.2)
    pruner.set_density(0.1)
    kept = pruner.kept
    pruner.finalize()
    with pytest.raises(ValueError, match="the pruner is finalized, so that no mask is left"):
        pruner.set_density(0.05)
    assert (
        sum(int(layer.weight.count_nonzero()) for layer in (model[0], model[3], model[6])) == kept
    )


# --- with a shrink phase ------------------------------------------------------------------------


def test_the_phases_of_a_pruner():
    assert phase_order(shrinks=True, learns=True) == ("shrink", "prune", "finetune")
    assert phase_order(shrinks=True, learns=False) == ("shrink", "finetune")
    assert phase_order(shrinks=False, learns=True) == ("prune", "finetune")
    assert phase_order(shrinks=False, learns=False) == ("finetune",)
    for kind, schedule in (("gradual", "cubic"), ("magnitude", "cubic"), ("held", "at_once")):
        pruner = attach_falling(kind, small(), 0.1, schedule=schedule)
        falls = schedule != "at_once"
        assert pruner.order == phase_order(shrinks=falls, learns=bool(pruner.learn))


@pytest.mark.parametrize("kind", ["magnitude", "hydra", "held"])
def test_the_shrink_phase_trains_what_fine_tuning_trains(kind):
    model = small()
    model[8].bias.requires_grad_(False)  # the user's own frozen parameter
    pruner = attach_falling(kind, model, 0.1)
    groups = pruner.set_phase("shrink")
    names = {f"{i}.{key}" for i in (0, 1, 3, 6, 8) for key in ("weight", "bias")} - {"8.bias"}
    assert requires_grad(model) == names
    assert len(groups) == 1 and set(groups[0]) == {"params"}
    assert {id(p) for p in groups[0]["params"]} == {id(model.get_parameter(n)) for n in names}
    optimizer = OPTIMIZERS["sgd"](groups)
    pruner.follow(optimizer, epochs=2, steps_per_epoch=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(2):
        loss_of(pruner, step).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    scores = {name for name in before if name.endswith("scores")}  # magnitudes, at the cuts
    assert moved - scores == names and bool(scores) == ("hydra" in kind or kind == "held")


def test_order_of_the_phases_with_a_schedule():
    def refused(pruner, phase, says):
        before = snapshot(pruner.model)
        with pytest.raises(ValueError, match=says):
            pruner.set_phase(phase)
        check_unchanged(pruner.model, before)

    gradual, magnitude = GradualPruner(small(), 0.1), attach_falling("magnitude", small(), 0.1)
    at_once = HydraPruner(small(), 0.1)
    refused(at_once, "shrink", "HydraPruner prunes at once, so it has no shrink phase; .*'prune'")
    refused(MagnitudePruner(small(), 0.1), "shrink", r"or start at set_phase\('finetune'\)")
    refused(gradual, "prune", "has not shrunk yet: its schedule .*; begin with set_phase..shrink")
    refused(gradual, "finetune", "GradualPruner has not shrunk yet")
    refused(gradual, "anneal", "phase is 'anneal'; legal: 'shrink', then 'prune', then 'finetune'")
    refused(magnitude, "finetune", "MagnitudePruner has not shrunk yet")
    refused(magnitude, "prune", r"has no prune phase; start at set_phase\('shrink'\)")
    for pruner in (gradual, magnitude):
        for _ in steps_of(pruner, "shrink"):
            pass
    refused(gradual, "finetune", "has learned nothing yet; run the phase 'prune' first")
    gradual.set_phase("prune")
    refused(gradual, "shrink", "'shrink' cannot follow 'prune'; the order is shrink, prune, fin")
    refused(gradual, "finetune", "learned nothing in its prune phase: no optimizer is followed")
    magnitude.set_phase("finetune")
    refused(magnitude, "shrink", "'shrink' cannot follow 'finetune'; the order is shrink, finetune")
    magnitude.finalize()
    refused(magnitude, "shrink", "'shrink' cannot follow 'finalized'")


@pytest.mark.parametrize("kind", ["hydra", "held", "gradual"])
def test_what_has_only_shrunk_is_not_finalized_where_something_is_learned(kind):
    pruner = attach_falling(kind, small(), 0.1)
    for stage in range(2):
        with pytest.raises(ValueError, match="has learned nothing yet; run the phase 'prune' firs"):
            pruner.finalize()
        if stage == 0:
            for _ in steps_of(pruner, "shrink"):
                pass
    assert pruner.phase == "shrink" and is_masked(pruner.model[0])
    assert pruner.kept == kept(SIZES, 0.2)


def test_magnitude_is_finalized_straight_from_the_shrink_phase():
    pruner = attach_falling("magnitude", small(), 0.1)
    for _ in steps_of(pruner, "shrink"):
        pass
    pruner.finalize()
    weights = [pruner.model[i].weight for i in (0, 3, 6, 8)]
    assert sum(int(w.count_nonzero()) for w in weights) == kept(SIZES, 0.1)


def test_a_schedule_and_densities_by_hand_exclude_each_other():
    with pytest.raises(ValueError, match="without a pattern and a schedule"):
        attach_falling("magnitude", small(), 0.1).set_density(0.05)


def test_the_penalty_is_for_phases_that_have_begun():
    pruner = attach_falling("hinge", small(), 0.1)
    with pytest.raises(ValueError, match=r"call set_phase\('shrink'\) first"):
        pruner.budget_penalty()
    for _ in steps_of(pruner, "shrink"):  # adds the penalty to every loss
        assert float(pruner.budget_penalty()) == 0
    pruner.set_phase("prune")
    assert float(pruner.budget_penalty().detach()) > 0  # from twice the budget
    assert float(attach_falling("magnitude", small(), 0.1).budget_penalty()) == 0
