"""The phases of a pruner: what each trains, their order, and what is legal in each."""

import pytest
import torch
from unchanged import check_unchanged, snapshot

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, finalize
from robust_plugin.masks.masked_layer import is_masked

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
