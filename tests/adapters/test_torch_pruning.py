"""The masked network and the removed one are the same network; and the budget counts the latter."""

import copy
import itertools

import pytest
import torch
from channel_networks import BUILD, build  # noqa: E402
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels

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


LARGE = {"googlenet", "regnet", "resnet18-torchvision", "resnet50", "mobilenet-v3", "squeezenet",
         "resnext"}  # fmt: skip
CASES = [
    pytest.param(
        name,
        dtype,
        id=f"{name}-{str(dtype)[6:]}",
        marks=[pytest.mark.slow] * (name in LARGE),
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
    model, x, many = build(name).to(dtype), images(dtype=dtype), images(64, dtype)
    pruner = MagnitudePruner(model, 1.0, groups=channel_groups(model, x[:1]))
    for level in LEVELS.values():
        keep(pruner, level)
        small = remove_channels(pruner, x).model
        with torch.no_grad():
            assert apart(model(x), small(x)) < bound
        for group in pruner.groups:
            before, after = (outputs_of(m.get_submodule(group.name)) for m in (model, small))
            assert after == before // group.size * level(group.size)
        exact = copy.deepcopy(model).double().train()
        with torch.no_grad():
            trained, after = model.train()(many), small.train()(many)
            assert not torch.equal(trained, model.eval()(many)) or not norms(model)
            rounding = apart(exact(many.double()), trained) if name in ROUNDING else 0.0
            assert apart(trained, after) < max(bound, 2 * rounding)
            assert rounding < 5e-5
            assert apart(model(x), small.eval()(x)) < bound  # the running statistics moved alike


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


@pytest.mark.parametrize(
    "shift", [0, 1, 63, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 127, 4))]
)
def test_every_count_of_every_width_up_to_128(shift):
    """Groups of 2 to 128 channels in one network; over the shifts, every count of each."""
    model, x = chain([4, *range(2, 129), 3]), torch.rand(2, 4)
    pruner = MagnitudePruner(model, 1.0, groups=channel_groups(model, x))
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
    dense, x = build(name), images(1)
    for density in (0.5, 0.25):
        model = copy.deepcopy(dense)
        pruner = MagnitudePruner(
            model, density, budget=budget, groups=channel_groups(model, x), example_inputs=x
        )
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
    model, x = build("resnet18"), images(16)
    y = torch.arange(16) % 10
    options = {"budget": budget, "groups": channel_groups(model, x[:1]), "example_inputs": x[:1]}
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
        weight = model.both.parametrizations.weight.original.detach()[:, 8 + channel]
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
