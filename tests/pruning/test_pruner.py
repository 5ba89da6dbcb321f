import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import robust_plugin.masks.attach
from robust_plugin import (
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Pruner,
    finalize,
    pgd,
)

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")


def requires_grad(model):
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {name.replace(".parametrizations.weight.original", ".weight") for name in names}


@pytest.mark.parametrize(("kind", "own"), [("hydra", 1), ("rates", 1), ("held", 2), ("hinge", 2)])
def test_phases_train_what_the_papers_train(cnn, attach, kind, own):
    model = cnn()
    model[6].bias.requires_grad_(False)  # the user's own frozen parameter
    model[1].bias.requires_grad_(False)
    pruner = attach(kind, model, 0.1)
    groups = pruner.set_phase("prune")
    masks = {"hydra": {"scores"}, "rates": {"rate"}}.get(kind, {"scores", "rate"})
    wanted = {"1.weight"} | {
        f"{i}.parametrizations.weight.0.group.{m}" for i in (0, 3, 6) for m in masks
    }
    assert requires_grad(model) == wanted
    assert [group.get("weight_decay") for group in groups] == [None] + [0.0] * own
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
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
    scores = {f"{i}.parametrizations.weight.0.group.scores" for i in (0, 3, 6)}
    norms = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert changed == scores | norms


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


def test_hydra_finds_the_weights_that_matter_and_magnitude_does_not():
    """Four features tell the class through small weights, four are noise under large ones."""
    y = torch.randint(2, (256,))
    x = torch.cat([torch.randn(256, 4), (2.0 * y[:, None] - 1).repeat(1, 4)], 1)
    weight = torch.cat([torch.ones(2, 4), torch.tensor([[-0.5], [0.5]]).repeat(1, 4)], 1)
    weight[:, :4] *= torch.tensor([[1.0], [-1.0]])

    def build():
        layer = nn.Linear(8, 2, bias=False)
        layer.weight.data = weight.clone()
        return nn.Sequential(layer)

    assert not MagnitudePruner(build(), 0.5).masks[0].mask[:, 4:].any()
    model = build()
    pruner = HydraPruner(model, 0.5)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1, momentum=0.9)
    pruner.follow(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert bool(pruner.masks[0].mask[:, 4:].all())
    assert torch.equal(model[0].parametrizations.weight.original, weight)


def test_top_k_runs_once_a_layer_in_a_step_with_an_attack(cnn, batch, threat, monkeypatch):
    calls, forwards = [], []
    original = robust_plugin.masks.attach.topk_mask
    monkeypatch.setattr(
        robust_plugin.masks.attach,
        "topk_mask",
        lambda scores, count: calls.append(count) or original(scores, count),
    )
    x, y = batch
    for pruner in (HydraPruner(cnn(), 0.1), HarpPruner(cnn(), 0.1)):
        optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=3)
        forwards.clear(), calls.clear()
        pruner.model.register_forward_hook(lambda *_: forwards.append(1))
        for step in range(1, 4):
            x_adv = pgd(threat, steps=10)(pruner.model, x, y)
            optimizer.zero_grad()
            F.cross_entropy(pruner.model(x_adv), y).backward()
            optimizer.step()
            assert len(calls) == 3 * step and len(forwards) == 11 * step
        pruner.set_phase("finetune")
        calls.clear()
        optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.1)
        calls.clear()
        F.cross_entropy(pruner.model(x), y).backward()
        optimizer.step()
        assert not calls


def test_masks_follow_the_optimizer(cnn, batch):
    model = cnn()
    pruner = HydraPruner(model, 0.1)
    optimizer = torch.optim.Adam(pruner.set_phase("prune"), lr=0.05)
    pruner.follow(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        for mask in pruner.masks:
            best = mask.scores.detach().abs().flatten().sort(descending=True).indices
            wanted = set(best[: int(mask.kept)].tolist())
            assert set(mask.mask.flatten().nonzero().flatten().tolist()) == wanted
    other = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(other)  # the first is followed no more
    steps = pruner.schedule.step
    optimizer.step()
    assert pruner.schedule.step == steps
    other.step()
    assert pruner.schedule.step == steps + 1


def test_scores_written_by_hand_need_update_masks(cnn):
    pruner = HydraPruner(cnn(), 0.1)
    with torch.no_grad():
        pruner.masks[0].scores.copy_(torch.arange(72.0).view(8, 1, 3, 3))
    pruner.update_masks()
    count = int(pruner.masks[0].kept)
    assert pruner.masks[0].mask.flatten().tolist() == [i >= 72 - count for i in range(72)]


def test_scores_that_diverge_say_so(cnn, batch):
    pruner = HydraPruner(cnn(), 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)
    F.cross_entropy(pruner.model(batch[0]), batch[1]).backward()
    pruner.masks[1].scores.grad.fill_(torch.nan)
    with pytest.raises(ValueError, match="scores hold NaN; lower the learning rate"):
        optimizer.step()


def test_iterative_magnitude_prunes_what_is_smallest_now(cnn, batch, attach, train):
    model = cnn()
    pruner = MagnitudePruner(model, 0.5)
    train(pruner, "finetune", lr=0.3)
    before = [m.mask.clone() for m in pruner.masks]
    for density in (0.25, 0.1, 0.05):
        weights = [model[i].weight.detach().clone() for i in (0, 3, 6)]
        pruner.set_density(density)
        for mask, weight, was in zip(pruner.masks, weights, before, strict=True):
            n = weight.numel()
            count = max(1, n - int((1 - density) * n))
            best = weight.flatten().abs().sort(descending=True).indices[:count]
            assert set(mask.mask.flatten().nonzero().flatten().tolist()) == set(best.tolist())
            assert not (mask.mask & ~was).any()  # what is gone stays gone
        assert pruner.kept == pruner.budget.total
        before = [m.mask.clone() for m in pruner.masks]
        train(pruner, "finetune", lr=0.3)
    for learned in (HydraPruner(cnn(), 0.5), MagnitudePruner(cnn(), pattern="2:4", exclude=["0"])):
        with pytest.raises(ValueError, match="cannot change its density on the way"):
            learned.set_density(0.1)
    with pytest.raises(ValueError, match="density is 0; legal"):
        pruner.set_density(0)


@pytest.mark.parametrize("kind", ["magnitude", "hydra"])
def test_pattern_everywhere_it_fits(cnn, batch, attach, train, kind):
    model = cnn()
    pruner = {"magnitude": MagnitudePruner, "hydra": HydraPruner}[kind](model, pattern="2:4")
    assert pruner.left_dense == ("0.weight",)  # one input channel
    assert [g.name for g in pruner.groups] == ["3.weight", "6.weight"]

    def check():
        for i in (3, 6):
            rows = model[i].weight.detach().movedim(1, -1).reshape(-1, 4)
            assert bool(((rows != 0).sum(1) == 2).all())
        assert pruner.kept == pruner.budget.total == (288 + 1280) // 2

    check()
    if kind == "hydra":
        train(pruner, "prune", lr=1.0)
        check()
    train(pruner, "finetune")
    check()
    pruner.finalize()
    check()
    assert bool((model[0].weight != 0).all())


@pytest.mark.parametrize("pattern", ["1:2", "9:10", "1:3", "5:6", "3:16", "7:7"])
@pytest.mark.parametrize("budget", ["params", "flops"])
def test_the_count_of_a_pattern_is_exact(pattern, budget):
    n, m = map(int, pattern.split(":"))
    model = nn.Sequential(nn.Linear(3 * m, 11), nn.Linear(11, m), nn.Linear(m, 5))
    x = torch.rand(1, 3 * m)
    pruner = MagnitudePruner(model, pattern=pattern, budget=budget, example_inputs=x)
    counts = [33 * n, 5 * n] if 11 % m else [33 * n, m * 11 * n // m, 5 * n]
    assert [int(mask.mask.sum()) for mask in pruner.masks] == counts
    assert [int(mask.kept) for mask in pruner.masks] == counts
    assert pruner.kept == pruner.budget.total == sum(counts)
    pruner.finalize()


def test_rates_given_by_name_imply_the_density(cnn, train):
    rates = {"0.weight": 0.5, "3.weight": 0.1, "6.weight": 0.02}
    pruner = HydraPruner(cnn(), rates=rates)
    counts = [72 - int(0.5 * 72), 288 - int(0.9 * 288), 1280 - int(0.98 * 1280)]
    train(pruner, "prune")
    train(pruner, "finetune")
    assert [int(m.mask.sum()) for m in pruner.masks] == counts
    assert pruner.kept == pruner.budget.total == sum(counts)


def test_early_end_of_a_held_phase_warns_and_still_meets_the_budget(cnn, batch, attach):
    pruner = attach("held", cnn(), 0.01)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=10, steps_per_epoch=10)
    F.cross_entropy(pruner.model(batch[0]), batch[1]).backward()
    optimizer.step()
    with pytest.warns(
        UserWarning, match="budget .*0.01, at step 1 of 100; the rest is cut at once"
    ) as said:
        pruner.set_phase("finetune")
    assert said[0].filename == __file__
    assert pruner.kept == pruner.budget.total
    full = attach("held", cnn(), 0.01)
    optimizer = torch.optim.SGD(full.set_phase("prune"), lr=0.1)
    full.follow(optimizer, epochs=1, steps_per_epoch=1)
    F.cross_entropy(full.model(batch[0]), batch[1]).backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full.set_phase("finetune")


@pytest.mark.parametrize("kind", ["held", "hinge"])
@pytest.mark.parametrize("density", [0.1, 0.05, 0.01])
def test_learned_rates_reach_the_target_by_their_own_training(attach, kind, density):
    """The sum that the rates themselves ask for, before anything is rounded, within 1 %."""
    x = torch.rand(256, 64)
    y = (x @ torch.randn(64, 10)).argmax(1)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 10)
    )
    pruner = attach(kind, model, density)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1, momentum=0.9)
    pruner.follow(optimizer, epochs=20, steps_per_epoch=10)
    for _ in range(200):
        some = torch.randint(256, (32,))
        optimizer.zero_grad()
        (F.cross_entropy(model(x[some]), y[some]) + pruner.budget_penalty()).backward()
        optimizer.step()
    wanted = sum(float(m.density().detach()) * m.scores.numel() for m in pruner.masks)
    assert wanted == pytest.approx(density * 17024, rel=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.set_phase("finetune")
    assert pruner.kept == pruner.budget.total


@pytest.mark.parametrize("kind", ["held", "hinge", "rates", "hydra"])
def test_finalize_straight_from_the_prune_phase_is_on_budget(cnn, attach, train, kind):
    pruner = attach(kind, cnn(), 0.05)
    train(pruner, "prune")
    pruner.finalize()
    kept = sum(int(pruner.model[i].weight.count_nonzero()) for i in (0, 3, 6))
    assert kept == pruner.budget.total == 4 + 15 + 64


def test_penalty_is_zero_but_for_the_hinge(cnn, attach, train):
    for kind in ("magnitude", "hydra", "held", "hinge"):
        pruner = attach(kind, cnn(), 0.05)
        assert float(pruner.budget_penalty()) == 0
        if kind != "magnitude":
            pruner.set_phase("prune")
            assert (float(pruner.budget_penalty().detach()) > 0) == (kind == "hinge")
            train(pruner, "prune", steps=1)
            pruner.set_phase("finetune")
        assert float(pruner.budget_penalty()) == 0


# Bad input: the value and the legal set are named, and the model is as it was.


def snapshot(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [
            (name, type(layer), layer.training, set(vars(layer)))
            for name, layer in model.named_modules()
        ],
        [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
    )


def check_unchanged(model, before):
    state, layers, parameters = before
    now = snapshot(model)
    assert now[1:] == (layers, parameters)
    assert list(now[0]) == list(state)
    assert all(torch.equal(v.nan_to_num(7), state[k].nan_to_num(7)) for k, v in now[0].items())


def with_nan(model, value=math.nan):
    model[3].weight.data[0, 0, 0, 0] = value
    return model


def nan_scores(model):
    scores = {f"{i}.weight": torch.ones_like(model[i].weight) for i in (0, 3, 6)}
    scores["6.weight"][3, 3] = math.nan
    return scores


BAD = {
    **{
        f"density {d}": (lambda m, d=d: Pruner(m, d), ValueError, "legal: 0 < density <= 1")
        for d in (0, -0.5, 1.01, math.nan, math.inf, None, "0.1")
    },
    "no density for harp": (lambda m: HarpPruner(m, None), ValueError, "density is None; legal"),
    "nothing prunable": (
        lambda m: Pruner(nn.Sequential(m[1], m[2]), 0.1),
        ValueError,
        "Sequential has no prunable layer",
    ),
    "NaN weight": (lambda m: Pruner(with_nan(m), 0.1), ValueError, "weights of 3.weight are not"),
    "inf weight": (
        lambda m: Pruner(with_nan(m, math.inf), 0.1),
        ValueError,
        "weights of 3.weight are not finite",
    ),
    "NaN scores": (
        lambda m: HydraPruner(m, 0.1, scores=nan_scores(m)),
        ValueError,
        "scores of 6.weight are not finite",
    ),
    "inf scores": (
        lambda m: HydraPruner(m, 0.1, scores=lambda w: w * math.inf),
        ValueError,
        "scores of 0.weight are not finite",
    ),
    "unknown scores": (
        lambda m: HydraPruner(m, 0.1, scores="magnitude"),
        ValueError,
        "'magnitude'; legal: scaled_magnitude",
    ),
    "unknown rates": (
        lambda m: HydraPruner(m, 0.1, rates="rigl"),
        ValueError,
        "'rigl'; legal: uniform, erk, lamp, global",
    ),
    "unknown budget": (
        lambda m: HydraPruner(m, 0.1, budget="latency"),
        ValueError,
        "'latency'; legal: params, flops",
    ),
    "unknown control": (
        lambda m: HarpPruner(m, 0.1, control="penalty"),
        ValueError,
        "'penalty'; legal: held, hinge",
    ),
    "unknown pattern": (
        lambda m: HydraPruner(m, pattern="4:2"),
        ValueError,
        "'4:2'; legal: \"n:m\"",
    ),
    "unknown learn": (
        lambda m: Pruner(m, 0.1, learn={"weights"}),
        ValueError,
        "'weights'.*legal: any of .'scores', 'rates'",
    ),
    "learn a string": (lambda m: Pruner(m, 0.1, learn="scores"), ValueError, "'scores'; legal"),
    "flops without inputs": (
        lambda m: Pruner(m, 0.1, budget="flops"),
        ValueError,
        "give example_inputs",
    ),
    "pattern and density": (
        lambda m: HydraPruner(m, 0.5, pattern="2:4"),
        ValueError,
        "density is 0.5, but a pattern",
    ),
    "pattern and rates": (
        lambda m: HydraPruner(m, pattern="2:4", rates="erk"),
        ValueError,
        "rates is 'erk'; a 2:4 pattern fixes",
    ),
    "pattern and learned rates": (
        lambda m: Pruner(m, pattern="2:4", learn={"rates"}),
        ValueError,
        "2:4 pattern fixes the rates",
    ),
    "pattern fits nowhere": (
        lambda m: HydraPruner(m, pattern="7:129"),
        ValueError,
        "129",
    ),
    "rates for other layers": (
        lambda m: HydraPruner(m, rates={"0.weight": 0.1}),
        ValueError,
        "lack .'3.weight', '6.weight'",
    ),
    "a rate of zero": (
        lambda m: HydraPruner(m, rates={"0.weight": 0.1, "3.weight": 0, "6.weight": 1}),
        ValueError,
        "rate of 3.weight is 0; legal: 0 < rate <= 1",
    ),
    "excluded layer unknown": (
        lambda m: Pruner(m, 0.1, exclude=["fc"]),
        ValueError,
        "'fc', which is not in the model",
    ),
    "no module": (lambda m: Pruner(m.forward, 0.1), TypeError, "model is a method"),
    "data parallel": (
        lambda m: Pruner(nn.DataParallel(m), 0.1),
        ValueError,
        "wrapped in DataParallel; give model.module",
    ),
    "compiled": (
        lambda m: Pruner(torch.compile(m, backend="eager"), 0.1),
        ValueError,
        "wrapped in OptimizedModule; give model._orig_mod",
    ),
    "tied to an embedding": (
        lambda m: Pruner(tied(m), 0.1),
        ValueError,
        "0.6.weight and 1.weight are one tied parameter",
    ),
}


def tied(model):
    embed = nn.Embedding(10, 128)
    embed.weight = model[6].weight
    return nn.Sequential(model, embed)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_the_model_alone(cnn, case):
    build, kind, says = BAD[case]
    model = cnn()
    if case in ("NaN weight", "inf weight"):
        with_nan(model, math.nan if case == "NaN weight" else math.inf)
    if case == "compiled":  # torch leaves a mark of its own
        torch.compile(model, backend="eager")
    before = snapshot(model)
    with pytest.raises(kind, match=says):
        build(model)
    check_unchanged(model, before)
    fixed = with_nan(model, 0.01)
    assert MagnitudePruner(fixed, 0.1).kept == 8 + 29 + 128  # and can still be pruned


def test_distributed_wrapper_is_refused(cnn, tmp_path):
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = cnn()
        before = snapshot(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match="DistributedDataParallel; give model.module"):
            Pruner(wrapped, 0.1)
        check_unchanged(model, before)
    finally:
        distributed.destroy_process_group()


def test_attaching_twice(cnn):
    model = cnn()
    pruner = MagnitudePruner(model, 0.1)
    before = snapshot(model)
    for kind in (MagnitudePruner, HydraPruner):
        with pytest.raises(ValueError, match="has a pruner already; finalize it"):
            kind(model, 0.5)
    check_unchanged(model, before)
    pruner.finalize()
    MagnitudePruner(model, 0.05)
    assert parametrize.is_parametrized(model[0])


def test_a_learned_phase_that_nothing_follows(cnn, batch, attach):
    for kind in ("hydra", "rates", "held", "hinge"):
        model = cnn()
        pruner = attach(kind, model, 0.1)
        parameters = pruner.set_phase("prune")
        with pytest.raises(ValueError, match="call pruner.follow"):
            model(batch[0])
        with torch.no_grad():
            model(batch[0])  # nothing would be learned here
        pruner.follow(torch.optim.SGD(parameters, lr=0.1), epochs=1, steps_per_epoch=1)
        model(batch[0])


def test_follow_checks_optimizer_phase_and_length(cnn, attach):
    model = cnn()
    pruner = attach("held", model, 0.1)
    lengths = {"epochs": 1, "steps_per_epoch": 2}
    with pytest.raises(ValueError, match="the phase is 'attached'; call set_phase"):
        pruner.follow(torch.optim.SGD(model.parameters(), lr=0.1), **lengths)
    groups = pruner.set_phase("prune")
    before = snapshot(model)
    for missing in range(3):
        some = [group for i, group in enumerate(groups) if i != missing]
        with pytest.raises(ValueError, match="the optimizer lacks [23] parameters of this phase"):
            pruner.follow(torch.optim.SGD(some, lr=0.1), **lengths)
    with pytest.raises(TypeError, match="optimizer is a list"):
        pruner.follow(groups, **lengths)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for bad in ({}, {"epochs": 3}, {"steps_per_epoch": 3}, {"epochs": 0, "steps_per_epoch": 3}):
        with pytest.raises(ValueError, match="epochs is .* and steps_per_epoch is"):
            pruner.follow(optimizer, **bad)
    check_unchanged(model, before)
    pruner.follow(optimizer, **lengths)
    pruner.set_phase("finetune")
    with pytest.raises(ValueError, match="the phase is 'finetune'"):
        pruner.follow(optimizer, **lengths)


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
    hydra.set_phase("finetune")
    refused(hydra, "prune", "'prune' cannot follow 'finetune'")
    hydra.set_phase("finetune")
    hydra.finalize()
    refused(hydra, "finetune", "'finetune' cannot follow 'finalized'")
    with pytest.raises(ValueError, match="found no masked layer"):
        finalize(hydra.model)


def test_plain_pruner_is_any_corner(cnn, train):
    harp = Pruner(cnn(), 0.05, learn=("scores", "rates"), control="held")
    train(harp, "prune")
    twin = HarpPruner(cnn(), 0.05)
    train(twin, "prune")
    for a, b in zip(harp.masks, twin.masks, strict=True):
        assert torch.equal(a.mask, b.mask) and torch.equal(a.scores, b.scores)


def test_same_seed_same_masks(cnn, attach, train):
    runs = []
    for _ in range(2):
        pruner = attach("hinge", cnn(), 0.05)
        train(pruner, "prune")
        runs.append(torch.cat([m.mask.flatten() for m in pruner.masks]))
    assert torch.equal(*runs)


def test_an_optimizer_of_the_prune_phase_is_refused_in_the_next(cnn, batch):
    model, (x, y) = cnn(), batch
    pruner = HydraPruner(model, 0.2)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)

    def step(optimizer):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step(optimizer)
    groups = pruner.set_phase("finetune")
    with pytest.raises(ValueError, match="the optimizer lacks .* build it from what set_phase"):
        step(optimizer)
    step(torch.optim.SGD(groups, lr=0.1))
    for group in groups:
        optimizer.add_param_group({"params": [p for p in group["params"] if p.dim() != 1]})
    with pytest.raises(ValueError, match="lacks"):  # still without the biases
        step(optimizer)


def test_what_learned_nothing_is_not_finalized(cnn):
    for kind in (HydraPruner, HarpPruner):
        model = cnn()
        pruner = kind(model, 0.2)
        with pytest.raises(ValueError, match="has learned nothing yet"):
            pruner.finalize()
        assert pruner.phase == "attached" and parametrize.is_parametrized(model[0])


def test_decaying_rates_warns(cnn):
    pruner = HarpPruner(cnn(), 0.2)
    groups = pruner.set_phase("prune")
    with pytest.warns(UserWarning, match="decays the rates by 0.01") as said:
        optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.1, weight_decay=0.01)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=1)
    assert said[0].filename == __file__  # the line of the user's loop
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=1)


def test_a_model_that_masks_hardly_cover_warns():
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(8, 8), torch.nn.Linear(8, 2)

    with pytest.warns(UserWarning, match=r"masks cover 2\.7% .* lstm\.weight_[ih]h_l0") as said:
        MagnitudePruner(Recurrent(), 0.5)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MagnitudePruner(Recurrent(), 0.5, exclude=["lstm"])


def test_an_average_is_evaluated_with_the_masks_of_now(cnn, batch, train):
    model = cnn()
    pruner = HydraPruner(model, 0.2)
    average = torch.optim.swa_utils.AveragedModel(model)
    train(pruner, "prune", lr=3.0)
    masks = [mask.mask.clone() for mask in pruner.masks]
    carried = [m for name, m in average.named_buffers() if name.endswith(".mask")]
    assert any(not torch.equal(a, b) for a, b in zip(masks, carried, strict=True))
    pruner.lend_masks(average)
    assert all(torch.equal(a, b) for a, b in zip(masks, carried, strict=True))
    average.eval()
    before = average(batch[0])
    pruner.finalize(average)
    assert torch.equal(average(batch[0]), before)
    assert not any(parametrize.is_parametrized(layer) for layer in average.modules())


def test_harp_from_rates_given_by_name(cnn, train):
    pruner = HarpPruner(cnn(), rates={"0.weight": 0.5, "3.weight": 0.2, "6.weight": 0.05})
    total = pruner.budget.total
    assert total == 36 + 58 + 64
    train(pruner, "prune")
    train(pruner, "finetune")
    assert pruner.kept == total


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
