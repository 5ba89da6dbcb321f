"""The masked network and the removed one are the same network; and the budget counts the latter."""

import copy
import functools
import itertools
import json

import pytest
import torch
from channel_networks import BUILD, build  # noqa: E402
from pruned_channels import X, Y, finalized, pruned
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robust_plugin import (
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    ThreatModel,
    certified,
    ibp_margins,
)
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.adapters.torch_pruning import (
    LearnedPruner,
    channel_groups,
    learned_importance,
    learned_ratios,
    load,
    remove_channels,
    save,
)
from robust_plugin.certificates.ibp import IBP
from robust_plugin.pruning import checkpoint as checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")

LEVELS = {"one": lambda n: 1, "quarter": lambda n: max(1, n // 4), "half": lambda n: max(1, n // 2),
          "all but one": lambda n: n - 1}  # fmt: skip


def images(batch=8, dtype=torch.float32, size=32):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def keep(pruner, count):
    """Random scores, and this many units of every group."""
    generator = torch.Generator().manual_seed(2)
    for mask in pruner.masks:
        mask.scores.data.copy_(torch.rand(mask.scores.shape, generator=generator))
        mask.choose(count(mask.scores.numel()))


def apart(one, other):
    return float((one - other).detach().abs().max() / one.detach().abs().max())


def multiply_adds(model):
    """torch's own count, for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(images(1))
    return counter.get_total_flops() // 2


BENCH = {"googlenet", "regnet", "resnet50", "mobilenet-v2"}  # their structures occur in others
LARGE = {"googlenet", "regnet", "resnet18-torchvision", "resnet50", "mobilenet-v2", "mobilenet-v3",
         "squeezenet", "resnext"}  # fmt: skip
CASES = [
    pytest.param(
        name,
        dtype,
        id=f"{name}-{str(dtype)[6:]}",
        # Most large networks are compared in float64 here; `make bench` has the rest and float32.
        marks=[pytest.mark.slow] * (name in LARGE)
        + [pytest.mark.bench] * (name in BENCH or (name in LARGE and dtype == torch.float32)),
    )
    for name in BUILD
    for dtype in (torch.float32, torch.float64)
]


# Where batches of few values magnify rounding most. What is compared there is rounding alone: the
# same in float64 is below 1e-12, and the masked network is as far from itself in float64.
ROUNDING = {"googlenet"}


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_masked_equals_removed(name, dtype):
    """In evaluation, in training on statistics of the batch, and in evaluation after that."""
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    # Statistics of fewer values magnify rounding more, for which float64 leaves room.
    many = images(64 if dtype == torch.float32 else 16, dtype)
    model, x = build(name).to(dtype), images(4, dtype)
    pruner = MagnitudePruner(model, 1.0, groups=channel_groups(model, x[:1]))
    for level in LEVELS.values():
        keep(pruner, level)
        small = remove_channels(pruner, x).model
        with torch.no_grad():
            assert apart(model(x), small(x)) < bound
        for group in pruner.groups:
            before, after = (outputs_of(m.get_submodule(group.name)) for m in (model, small))
            assert after == before // group.size * level(group.size)
        own = name in ROUNDING and dtype == torch.float32
        exact = copy.deepcopy(model).double().train() if own else None
        with torch.no_grad():
            trained, after = model.train()(many), small.train()(many)
            assert not torch.equal(trained, model.eval()(many)) or not norms(model)
            rounding = apart(exact(many.double()), trained) if exact else 0.0
            assert apart(trained, after) < max(bound, 2 * rounding)
            assert rounding < 5e-5
            assert apart(model(x), small.eval()(x)) < bound  # the running statistics moved alike


@functools.cache
def found(name):
    """A network and its channel groups, which take seconds to find."""
    model = build(name)
    return model, channel_groups(model, images(1))


def grouped(name):
    """A copy of a network and its channel groups."""
    return copy.deepcopy(found(name))


def norms(model):
    return any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize("name", ["resnet18", "densenet"])
def test_a_network_in_training_gives_one_in_training(name):
    model, x = build(name).train(), images(16)
    pruner = MagnitudePruner(model, 0.5, groups=channel_groups(model, x[:1]))
    small = remove_channels(pruner, x).model
    assert all(module.training for module in (*small.modules(), *model.modules()))
    assert apart(model(x), small(x)) < 1e-5


def outputs_of(layer):
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def chain(widths):
    layers = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module")
def wide_chain():
    """Groups of 2 to 128 channels in one network."""
    model = chain([4, *range(2, 129), 3])
    return model, channel_groups(model, torch.rand(2, 4))


FEW = {0, 1, 63, 126}


@pytest.mark.parametrize(
    "shift",
    [pytest.param(s, marks=() if s in FEW else pytest.mark.bench) for s in range(128)],
)
def test_every_count_of_every_width_up_to_128(shift, wide_chain):
    """Over all shifts, of which most are run by `make bench`, every count of each group."""
    (model, groups), x = copy.deepcopy(wide_chain), torch.rand(2, 4)
    pruner = MagnitudePruner(model, 1.0, groups=groups)
    assert [g.size for g in pruner.groups] == list(range(2, 129))
    keep(pruner, lambda n: 1 + (n - 1 + shift) % n)
    small = remove_channels(pruner, x).model
    made = [layer.out_features for layer in small if isinstance(layer, nn.Linear)]
    assert made == [*(1 + (n - 1 + shift) % n for n in range(2, 129)), 3]


def test_a_coupled_group_has_one_answer():
    model, x = build("resnet18"), images(2)
    pruner = MagnitudePruner(model, 0.3, groups=channel_groups(model, x))
    small = remove_channels(pruner, x).model
    stem = small.stem[0].out_channels
    stage = [block.conv2.out_channels for block in small.stage1]
    assert stage == [stem, stem] and small.stage1[0].conv1.in_channels == stem
    assert small.stage2[0].shortcut[0].out_channels == small.stage2[1].conv2.out_channels
    # Which filters stay is one answer too: theirs are the same channels of every producer.
    mask = next(m.mask for g, m in zip(pruner.groups, pruner.masks, strict=True) if "stem" in
                {c.layer_name.split(".")[0] for c in g.coupled}).flatten()  # fmt: skip
    assert torch.equal(small.stem[0].weight, model.stem[0].weight[mask])


@pytest.mark.parametrize("name", ["resnet18", "concat", "densenet", "mobilenet-v2", "resnext"])
@pytest.mark.parametrize("budget", ["flops", "params", "channels"])
def test_the_removed_network_costs_the_budget(name, budget):
    (dense, _), x = grouped(name), images(1)
    for density in (0.5, 0.25):
        model, groups = grouped(name)
        pruner = MagnitudePruner(model, density, budget=budget, groups=groups)
        removed = remove_channels(pruner, x)
        assert removed.multiply_adds == (multiply_adds(dense), multiply_adds(removed.model))
        sizes = tuple(sum(p.numel() for p in m.parameters()) for m in (dense, removed.model))
        assert removed.parameters == sizes
        full, left = sizes if budget == "params" else removed.multiply_adds
        assert pruner.budget.full == full and pruner.kept == left
        if budget == "channels":
            assert left == pruner.budget.total
            uniform = {g.name: max(1, g.size - int((1 - density) * g.size)) for g in pruner.groups}
            assert removed.counts == uniform
        else:
            best = 1.0  # of two groups, whole numbers may not allow for a per cent
            if len(pruner.groups) == 2:
                pairs = itertools.product(*(range(1, n + 1) for n in pruner.budget.sizes))
                costs = [pruner.budget.cost(pair) for pair in pairs]
                best = max(cost for cost in costs if cost <= density * full) / (density * full)
            assert min(0.99, best) * density * full <= left <= density * full


def train(pruner, optimizer, x, y, steps):
    for _ in range(steps):
        loss = F.cross_entropy(pruner.model(x), y) + pruner.budget_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("budget", ["flops", "params", "channels"])
@pytest.mark.parametrize("kind", ["hydra", "held", "hinge", "rates"])
def test_learned_to_the_end(kind, budget):
    (model, groups), x = grouped("resnet18"), images(16)
    y = torch.arange(16) % 10
    options = {"budget": budget, "groups": groups}
    if kind == "hydra":
        pruner = HydraPruner(model, 0.25, **options)
    elif kind == "rates":
        pruner = HarpPruner(model, 0.25, learn=("rates",), **options)
    else:
        pruner = HarpPruner(model, 0.25, control=kind, **options)
    target = pruner.budget.total
    assert target == (pruner.budget.cost([max(1, n - int(0.75 * n)) for n in pruner.budget.sizes])
                      if budget == "channels" else int(0.25 * pruner.budget.full))  # fmt: skip
    before = [mask.mask.clone() for mask in pruner.masks]
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0, momentum=0.9)
    pruner.follow(optimizer, epochs=2, steps_per_epoch=4)
    train(pruner, optimizer, x, y, 8)
    moved = any(not torch.equal(b, m.mask) for b, m in zip(before, pruner.masks, strict=True))
    assert moved
    if kind in ("held", "rates"):
        assert 0.99 * target <= pruner.kept <= target
        assert len({round(m.rate.item(), 3) for m in pruner.masks}) > 3
    train(pruner, torch.optim.SGD(pruner.set_phase("finetune"), lr=0.01), x, y, 2)
    counts = [int(mask.mask.sum()) for mask in pruner.masks]
    assert min(counts) >= 1 and 0.99 * target <= pruner.kept <= target
    removed = remove_channels(pruner, x)
    left = removed.parameters[1] if budget == "params" else multiply_adds(removed.model)
    assert left == pruner.kept and list(removed.counts.values()) == counts
    logits = model.eval()(x)
    pruner.finalize()
    again = remove_channels(pruner, x)
    assert apart(logits, again.model.eval()(x)) < 1e-5
    assert again.history == removed.history


def test_the_scores_learn_what_the_masked_channels_contribute():
    """dL/ds is sign(s) dL/dm, of a mask that multiplies what all consumers read."""
    model, x = build("concat").double(), images(4, torch.float64)
    pruner = HydraPruner(model, 0.5, groups=channel_groups(model, x))
    pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
    a = torch.randn(4, 5, dtype=torch.float64)
    (model(x) * a).sum().backward()
    left = next(i for i, g in enumerate(pruner.groups) if g.size == 12)
    mask = pruner.masks[left]
    plain, weight = copy.deepcopy(model), None
    pruner.finalize(plain)
    for channel in range(12):
        weight = model.both._parameters["weight"].detach()[:, 8 + channel]
        moved = []
        for step in (1e-6, -1e-6):
            other = copy.deepcopy(plain)
            other.both.weight.data[:, 8 + channel] += step * weight
            moved.append((other(x) * a).sum().item())
        slope = (moved[0] - moved[1]) / 2e-6
        assert float(mask.scores.grad[channel]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_a_network_of_one_group_has_a_budget_of_channels():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    x = torch.rand(1, 1, 8, 8)
    groups = channel_groups(model, x)
    assert len(groups) == 1
    pruner = MagnitudePruner(model, 0.5, budget="channels", groups=groups, example_inputs=x)
    assert remove_channels(pruner, x).model[0].out_channels == 4


def test_example_inputs_are_given_once():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2))
    x = torch.rand(2, 1, 8, 8)
    again = copy.deepcopy(model)
    pruner = MagnitudePruner(model, 0.5, budget="flops", groups=channel_groups(model, x))
    same = MagnitudePruner(
        again, 0.5, budget="flops", groups=list(channel_groups(again, x)), example_inputs=x
    )
    small, also = remove_channels(pruner), remove_channels(same, x)
    assert small.counts == also.counts
    assert torch.equal(small.model(x), also.model(x))
    third = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2))
    bare = MagnitudePruner(third, 0.5, budget="params", groups=list(channel_groups(third, x)))
    with pytest.raises(ValueError, match="example_inputs is None"):
        remove_channels(bare)


def test_masks_that_still_move_and_groups_of_weights_are_refused():
    model = build("resnet18")
    pruner = HydraPruner(model, 0.5, groups=channel_groups(model, X[:1]))
    for phase in ("attached", "prune"):
        if phase == "prune":
            pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
        with pytest.raises(ValueError, match=f"phase is '{phase}', in which masks still move"):
            remove_channels(pruner, X)
    weights = MagnitudePruner(build("resnet18"), 0.5)
    for call in (lambda p: remove_channels(p, X), learned_importance, learned_ratios):
        with pytest.raises(ValueError, match="not of channels that can be removed"):
            call(weights)
    with pytest.raises(ValueError, match="budget is 'channels', but the groups do not say"):
        MagnitudePruner(build("resnet18"), 0.5, budget="channels", example_inputs=X[:1])
    model = build("resnet18")
    groups = tuple(channel_groups(model, X[:1]))  # a plain tuple has no example inputs
    for budget in ("flops", "channels"):
        with pytest.raises(ValueError, match=f"budget='{budget}' counts on a forward pass"):
            MagnitudePruner(model, 0.5, budget=budget, groups=groups)
    with pytest.raises(ValueError, match=r"density is 0.001, but one channel of every group.*0\.0"):
        MagnitudePruner(model, 0.001, budget="flops", groups=groups, example_inputs=X[:1])


def test_trained_after_finalize_is_no_longer_the_masked_network():
    model, pruner = finalized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="differs from the masked .* trained on after finalize"):
        remove_channels(pruner, X)


def test_what_was_cut_already_is_not_cut_again():
    model, learned = finalized()
    LearnedPruner(model, X[:1], learned).step()
    with pytest.raises(ValueError, match="of shape .* does not fit a mask of"):
        remove_channels(learned, X)
    model, learned = finalized()
    MagnitudePruner(model, 0.5)
    with pytest.raises(ValueError, match="carries a mask"):
        remove_channels(learned, X)


@pytest.mark.parametrize("name", ["resnet18", "densenet", "resnext"])
def test_save_and_load_bit_for_bit(tmp_path, name):
    model, pruner = pruned(name)
    removed = remove_channels(pruner, X)
    assert json.loads(json.dumps(removed.history)) == [list(step) for step in removed.history]
    path = tmp_path / "small.safetensors"
    save(path, removed)
    dense = build(name)
    before = copy.deepcopy(dense.state_dict())
    small = load(path, dense, X[:1])
    theirs, ours = removed.model.state_dict(), small.state_dict()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert torch.equal(small(X), removed.model(X))
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())


def test_files_of_other_networks_are_named(tmp_path):
    model, pruner = pruned("resnet18")
    path = tmp_path / "small.safetensors"
    save(path, remove_channels(pruner, X))
    with pytest.raises(ValueError, match="which DenseNet has not"):
        load(path, build("densenet"), X[:1])
    with pytest.raises(ValueError, match="is torch.float32 of shape .*, here torch.float64"):
        load(path, build("resnet18").double(), X[:1].double())
    with pytest.raises(ValueError, match="carries a mask"):
        load(path, model, X[:1])
    checkpoints.save(tmp_path / "other", model=build("resnet18"))
    with pytest.raises(ValueError, match="holds no removed channels"):
        load(tmp_path / "other", build("resnet18"), X[:1])


THREAT = ThreatModel("Linf", eps=0.03)


class Block(nn.Module):
    """Two convolutions beside a shortcut: one group of channels runs through a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head((x + self.conv2(torch.relu(self.conv1(x)))).flatten(1))


def small_chain():
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 10))


def settled(model):
    """BatchNorm statistics that are not those of the start."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model.double().eval()


NETWORKS = {"chain": small_chain, "residual": Block}


PRUNERS = {"hydra": HydraPruner, "harp": HarpPruner}


@pytest.mark.filterwarnings("ignore:the rates ended at")
@pytest.mark.parametrize("kind", PRUNERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_and_removed_channels_have_the_same_bounds(batch, name, kind):
    model, x, y = settled(NETWORKS[name]()), batch[0][:4].double(), batch[1][:4]
    pruner = PRUNERS[kind](model, 0.5, groups=channel_groups(model, x[:1]), example_inputs=x[:1])
    pruner.set_phase("prune")
    for mask in pruner.masks:
        nn.init.normal_(mask.scores)
    pruner.update_masks()
    pruner.set_phase("finetune")
    small = remove_channels(pruner, x[:1]).model
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(
        p.numel() for p in pruner.model.parameters()
    )
    masked = ibp_margins(model, x, y, THREAT)
    assert (masked - ibp_margins(small, x, y, THREAT)).abs().max() < 1e-12
    for method in ("IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"):
        prover = LiRPA(THREAT, method, iterations=3)
        found, wanted = prover.margins(model, x, y), prover.margins(small, x, y)
        assert (found - wanted).abs().max() < 1e-8, method
        assert found.min() > -1e6  # bounds, not a void


@pytest.mark.filterwarnings("ignore:the rates ended at")
def test_channels_trained_by_bounds_are_removed_with_their_proofs(batch):
    """Pretrain, prune and finetune by the certified loss; the small network proves the same."""
    torch.manual_seed(0)
    y = torch.arange(40) % 4
    x = 0.2 * torch.rand(40, 1, 8, 8)
    for i, label in enumerate(y.tolist()):
        x[i, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.7
    model = small_chain()
    objective = certified(THREAT, kappa=(1.0, 0.5))

    def train(parameters, pruner=None):
        optimizer = torch.optim.Adam(parameters, lr=5e-3)
        if pruner is not None:
            pruner.follow(optimizer, epochs=2, steps_per_epoch=10)
        for step in range(20):
            objective.progress(step / 10, 2)
            optimizer.zero_grad()
            objective(model, x, y).backward()
            optimizer.step()

    train(model.parameters())
    pruner = HarpPruner(model, 0.5, groups=channel_groups(model, x[:1]), example_inputs=x[:1])
    train(pruner.set_phase("prune"), pruner)
    train(pruner.set_phase("finetune"))
    assert 0.97 * pruner.budget.total < pruner.kept <= pruner.budget.total  # integers
    small = remove_channels(pruner, x[:1]).model
    proved = IBP(THREAT)(model, x, y)
    assert proved.float().mean() > 0.5
    assert torch.equal(proved, IBP(THREAT)(small, x, y))
    assert torch.equal(LiRPA(THREAT, "CROWN")(model, x, y), LiRPA(THREAT, "CROWN")(small, x, y))


def test_the_steps_of_a_removal_are_reported():
    seen = []
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 5), nn.Flatten(), nn.Linear(32, 2))
    groups = channel_groups(model, torch.rand(1, 1, 8, 8))
    pruner = MagnitudePruner(model, density=0.5, budget="channels", groups=groups)
    remove_channels(pruner, progress=seen.append)
    # The cut, then the outputs on the given inputs and on random ones.
    assert [(p.done, p.total, p.unit) for p in seen] == [(i, 3, "steps") for i in range(4)]
    assert {p.task for p in seen} == {"remove channels"}
