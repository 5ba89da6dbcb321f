"""Learned scores and counts in loops for torch-pruning's pruners; optimizers that go on."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch_pruning as tp
from channel_networks import build  # noqa: E402
from pruned_channels import X, Y, attached, finalized, pruned
from torch import nn
from torch.nn import functional as F
from torch_pruning.pruner.algorithms.scheduler import linear_scheduler

from robust_plugin import HydraPruner, MagnitudePruner, carry_optimizer
from robust_plugin.adapters.torch_pruning import (
    LearnedPruner,
    channel_groups,
    learned_importance,
    learned_ratios,
    remove_channels,
)
from robust_plugin.channels.ranking import Ranking
from robust_plugin.pruning import checkpoint as checkpoints


def kept_filters(model, small):
    """Which filters of the stem are left, by their values."""
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    whole, left = model.get_submodule(name).weight, small.get_submodule(name).weight
    return [int((whole == row).flatten(1).all(1).nonzero()[0]) for row in left]


@pytest.mark.parametrize(
    "name", ["resnet18", "wrn-10-2", "vgg16-bn", "densenet", "mobilenet-v2", "cnn", "resnext"]
)
def test_the_one_liner_removes_what_we_remove(name):
    model, pruner = pruned(name)
    ours = remove_channels(pruner, X).model
    importance, ratios = learned_importance(pruner), learned_ratios(pruner)
    pruner.finalize()
    logits = model(X)
    theirs = copy.deepcopy(model)  # to see the filters; the model itself is cut
    tp.pruner.BasePruner(model, (X[:1],), importance=importance, pruning_ratio_dict=ratios).step()
    assert [p.shape for p in model.parameters()] == [p.shape for p in ours.parameters()]
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True)
    )
    assert torch.allclose(model(X), logits, atol=1e-4 * float(logits.detach().abs().max()))
    assert kept_filters(theirs, model) == sorted(kept_filters(theirs, model))


def test_ratios_survive_rounding():
    """torch-pruning's own count, int(n (1 - ratio)), for every width and count up to 128."""
    for units in range(1, 129):
        group = SimpleNamespace(size=units)
        for kept in range(1, units + 1):
            ranking = Ranking(group, SimpleNamespace(kept=kept))
            assert int(units * (1 - ranking.ratio)) == kept
            ratios = linear_scheduler(ranking.ratio, 5)
            assert [ranking.at(n, 5) for n in range(6)] == [int(units * (1 - r)) for r in ratios]
    naive = [(n, k) for n in range(1, 129) for k in range(1, n) if int(n * (1 - (1 - k / n))) != k]
    assert naive  # what the half in the ratio is for


def test_unscored_layers_are_left_alone():
    model = build("resnet18")
    some = channel_groups(model, X[:1], ignored=["stage1", model.stage2[0]])
    names = {m.layer_name for group in some for m in group.coupled}
    assert not any(name.startswith(("stage1", "stage2.0")) for name in names)
    pruner = MagnitudePruner(model, groups=some, rates={g.name: 0.5 for g in some})
    ratios, importance = learned_ratios(pruner), learned_importance(pruner)
    assert ratios[model.stage1[0].conv1] == ratios[model.classifier] == 0.0
    pruner.finalize()
    tp.pruner.BasePruner(model, (X[:1],), importance=importance, pruning_ratio_dict=ratios).step()
    assert model.stage1[0].conv1.out_channels == 8 and model.classifier.out_features == 10
    assert model.stage2[1].conv1.out_channels == 8 and model.stage3[0].conv1.out_channels == 16


@pytest.mark.parametrize("name", ["resnet18", "mobilenet-v2", "cnn", "concat"])
@pytest.mark.parametrize("interactive", [False, True])
def test_torch_prunings_loop_with_our_pruner(name, interactive):
    """The loop of torch-pruning's examples: sparse training, a step, and so on."""
    model, learned = pruned(name)
    ours = remove_channels(learned, X)
    learned.finalize()
    pruner = LearnedPruner(model, X[:1], learned, iterative_steps=3)
    assert not model.training
    sizes = []
    for _ in range(pruner.iterative_steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-2)
        pruner.update_regularizer()
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            pruner.regularize(model)
            optimizer.step()
        logits = model(X)
        if interactive:
            for group in pruner.step(interactive=True):
                group.prune()
        else:
            pruner.step()
        assert torch.allclose(model(X), logits, rtol=1e-3, atol=1e-3)
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes[0] > sizes[1] > sizes[2] == ours.parameters[1]
    shapes = [(n, p.shape) for n, p in model.named_parameters()]
    assert shapes == [(n, p.shape) for n, p in ours.model.named_parameters()]
    with pytest.raises(ValueError, match="all 3 steps are done"):
        pruner.step()


def test_without_regularize_the_condemned_channels_would_come_back():
    model, learned = pruned("resnet18")
    learned.finalize()
    zero = model.stage1[0].conv1.weight == 0
    LearnedPruner(model, X[:1], learned)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert zero.any() and model.stage1[0].conv1.weight[zero].abs().max() > 0


def test_a_frozen_layer_is_cut_by_ours_and_named_for_theirs():
    model = build("resnet18")
    model.stem.requires_grad_(False)
    groups = channel_groups(model, X[:1])
    pruner = MagnitudePruner(model, groups=groups, rates={g.name: 0.5 for g in groups})
    with pytest.raises(ValueError, match="layer 'stem.0' is frozen.*follows autograd"):
        learned_ratios(pruner)
    small = remove_channels(pruner, X).model
    assert small.stem[0].out_channels == 4 and not small.stem[0].weight.requires_grad
    assert small.classifier.weight.requires_grad
    pruner.finalize()
    LearnedPruner(model, X[:1], pruner).step()
    assert model.stem[0].out_channels == 4 and not model.stem[0].weight.requires_grad
    assert model.classifier.weight.requires_grad


@pytest.mark.parametrize("frozen", [False, True])
def test_flags_and_modes_of_the_model_stay(frozen):
    model = build("mobilenet-v2").train()
    model.features[3].eval()
    model.requires_grad_(not frozen)
    model.classifier[1].weight.grad = torch.ones(10, 1280)
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    with torch.no_grad():
        groups = channel_groups(model, X[:1])
    assert len(groups) == 24
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad != frozen for p in model.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True)
    )
    assert bool((model.classifier[1].weight.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks for m in model.modules())
    small = remove_channels(MagnitudePruner(model, 0.5, groups=groups), X).model
    assert [m.training for m in small.modules() if not list(m.children())] == [
        m.training for m in copy_without_masks(model).modules() if not list(m.children())
    ]


def copy_without_masks(model):
    from robust_plugin import finalize

    plain = copy.deepcopy(model)
    finalize(plain)
    return plain


def test_live_masks_are_named():
    model, pruner = attached()
    with pytest.raises(ValueError, match=r"layer '\S+' carries a mask"):
        channel_groups(model, X[:1])
    with pytest.raises(ValueError, match="carries a mask"):
        LearnedPruner(model, X[:1], pruner)
    plain = build("resnet18")
    nn.utils.prune.l1_unstructured(plain.stem[0], "weight", 0.5)
    with pytest.raises(ValueError, match="layer 'stem.0' carries a mask"):
        channel_groups(plain, X[:1])
    group = tp.DependencyGraph().build_dependency(build("resnet18"), (X[:1],))
    root = next(iter(group.get_all_groups(root_module_types=[nn.Conv2d])))
    with pytest.raises(ValueError, match="masks are attached; call pruner.finalize"):
        learned_importance(pruner)(root)


def test_a_copy_is_not_the_model():
    model, pruner = finalized()
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match="learned on another model; give learned.model"):
        LearnedPruner(other, X[:1], pruner)
    theirs = tp.pruner.BasePruner(
        other, (X[:1],), importance=learned_importance(pruner),
        pruning_ratio_dict=learned_ratios(pruner),
    )  # fmt: skip
    with pytest.raises(ValueError, match="another model than the scores were learned on"):
        theirs.step()
    ours = LearnedPruner(model, X[:1], pruner)
    with pytest.raises(ValueError, match="regularize got another model"):
        ours.regularize(other)


def test_a_count_that_disagrees_is_named():
    model, learned = finalized()
    pruner = LearnedPruner(model, X[:1], learned)
    with pytest.raises(ValueError, match="keeps .* units of group .* after step 1 of 1, not"):
        for group in pruner.step(interactive=True):
            if group[0].dep.target.module is not model.stage1[0].conv1:
                group.prune()
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"iterative_steps is {steps}; legal: 1 or more"):
            LearnedPruner(model, X[:1], learned, iterative_steps=steps)


# Optimizers.


def test_a_pruner_of_channels_resumes(tmp_path):
    """Checkpoint and restore in the middle of learning: the same masks, budget and network."""

    def start():
        model = build("densenet")
        groups = channel_groups(model, X[:1])
        pruner = HydraPruner(model, 0.4, budget="flops", groups=groups, example_inputs=X[:1])
        optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0, momentum=0.9)
        pruner.follow(optimizer)
        return model, pruner, optimizer

    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()

    model, pruner, optimizer = start()
    train(model, optimizer, 2)
    checkpoints.save(tmp_path / "c", model=model, pruner=pruner, optimizer=optimizer)
    train(model, optimizer, 2)
    pruner.set_phase("finetune")
    again, resumed, other = start()
    checkpoints.load(tmp_path / "c").restore(model=again, pruner=resumed, optimizer=other)
    train(again, other, 2)
    resumed.set_phase("finetune")
    one, two = (remove_channels(p, X) for p in (pruner, resumed))
    assert one.history == two.history
    assert torch.equal(one.model(X), two.model(X))
    other = MagnitudePruner(build("densenet"), 0.4)
    with pytest.raises(ValueError, match="the state is of another pruner"):
        other.load_state_dict(pruner.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=1e-3),
    ],
)
@pytest.mark.parametrize("name", ["resnet18", "cnn", "concat"])
def test_training_goes_on_with_the_momentum_it_had(make, name):
    """Masked and small network take the same next steps: on what is left they agree."""
    model, pruner = pruned(name, rates="uniform")
    model, x, y = model.double(), X.double(), Y
    optimizer = make(pruner.set_phase("finetune"))

    def step(network, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(network.eval()(x), y).backward()
        optimizer.step()

    for _ in range(3):
        step(model, optimizer)
    small = remove_channels(pruner, x).model
    carried = carry_optimizer(optimizer, pruner, small)
    assert type(carried) is type(optimizer)
    assert {id(p) for g in carried.param_groups for p in g["params"]} == {
        id(p) for p in small.parameters()
    }
    for _ in range(3):
        step(model, optimizer), step(small, carried)
    expected, found = model(x), small(x)
    assert torch.allclose(expected, found, rtol=1e-8, atol=1e-10)
    # A new optimizer, without the momentum, would not have come here.
    fresh = remove_channels(pruner, x).model
    assert not torch.allclose(expected, fresh(x) + 1e-3)


def test_an_optimizer_that_is_not_the_networks_is_named():
    model, pruner = pruned("resnet18")
    optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.1)
    small = remove_channels(pruner, X).model
    stranger = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="a parameter that the pruned network has not"):
        carry_optimizer(stranger, pruner, small)
    with pytest.raises(ValueError, match="not in the small network as these masks leave it"):
        carry_optimizer(optimizer, pruner, build("resnet18"))
    odd = torch.optim.Adafactor(pruner.model.parameters(), lr=0.1)
    F.cross_entropy(model(X), Y).backward()
    odd.step()
    with pytest.raises(ValueError, match="cannot be cut alike; build a new optimizer"):
        carry_optimizer(odd, pruner, small)
