"""Counts that are multiples of a step: channels in blocks, and n:m patterns, within the budget."""

import copy
import itertools
import random

import pytest
import torch
from channel_networks import build  # noqa: E402
from pattern_networks import counts_of_every, small, train_steps  # noqa: E402
from torch import nn
from torch.nn import functional as F

from robust_plugin import Budget, HarpPruner, HydraPruner, MagnitudePruner, dense_state_dict
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels
from robust_plugin.budget.costs import total_multiply_adds
from robust_plugin.budget.patterns_and_blocks import BlockBudget, PatternBudget, nearest
from robust_plugin.pruning.checkpoint import load, save
from robust_plugin.recipes.models.networks import resnet18

pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")
SHAPE = (3, 32, 32)
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def random_budget(draw: random.Random, groups: int = 4) -> BlockBudget:
    steps = tuple(draw.choice([1, 8, 8, 16]) for _ in range(groups))
    pairs = [(i, j) for i in range(groups) for j in range(i, groups)]
    return BlockBudget(
        tuple(step * draw.randint(4, 9) for step in steps),
        tuple(draw.randint(0, 30) for _ in steps),
        1.0,
        0,
        tuple((i, j, draw.randint(1, 9)) for i, j in draw.sample(pairs, 5)),
        draw.randint(0, 500),
        steps=steps,
    )


def test_the_cost_of_blocks_is_the_cost_of_their_entries():
    draw = random.Random(0)
    for _ in range(20):
        budget = random_budget(draw)
        blocks = [draw.randint(1, size) for size in budget.blocks.sizes]
        entries = [count * step for count, step in zip(blocks, budget.steps, strict=True)]
        assert budget.blocks.cost(blocks) == budget.cost(entries)
        assert budget.blocks.full == budget.full


@pytest.mark.parametrize("unit", ["flops", "params", "channels"])
def test_rounding_meets_the_budget_nearly_as_well_as_whole_blocks_allow(unit):
    draw, far, tried = random.Random(1), 0, 0
    for _ in range(60):
        budget = random_budget(draw).at(draw.uniform(0.35, 0.9), unit)
        counts = budget.round([draw.uniform(0.1, 1) for _ in budget.sizes])
        left = budget.total - budget.cost(counts)
        assert left >= 0
        for i, (n, size, step) in enumerate(zip(counts, budget.sizes, budget.steps, strict=True)):
            assert n % step == 0 and step <= n <= size
            one_more = [m + step * (i == j) for j, m in enumerate(counts)]
            assert n == size or budget.cost(one_more) > budget.total
        all_blocks = (
            range(step, size + 1, step)
            for step, size in zip(budget.steps, budget.sizes, strict=True)
        )
        costs = (budget.cost(each) for each in itertools.product(*all_blocks))
        best = max(cost for cost in costs if cost <= budget.total)
        far += best - budget.cost(counts) > 0.03 * budget.total
        tried += 1
    assert tried == 60 and far <= 6


def test_what_rates_ask_for_is_rounded_up_to_blocks():
    budget = BlockBudget((64, 20), (1, 1), 1.0, 0, steps=(8, 1))
    assert budget.asked([0.3, 0.3]) == [24, 6]
    assert budget.asked([1e-6, 1.0]) == [8, 20]


def multiples(pruner, round_to: int) -> list[int]:
    """The counts, which are blocks wherever those divide the group, and odd elsewhere."""
    counts = [int(mask.mask.sum()) for mask in pruner.masks]
    assert counts == [int(mask.kept) for mask in pruner.masks]
    for count, size in zip(counts, pruner.budget.sizes, strict=True):
        assert count >= 1 and (size % round_to or count % round_to == 0)
    return counts


@pytest.fixture(scope="module")
def whole_resnet18():
    """A full ResNet-18 and its channel groups, which take seconds to find."""
    model = resnet18(10, SHAPE).eval()
    return model, channel_groups(model, X[:1])


@pytest.mark.parametrize("round_to", [1, 8, 16])
@pytest.mark.parametrize("budget", ["flops", "params", "channels"])
def test_a_resnet18_keeps_blocks_within_a_percent(round_to, budget, whole_resnet18):
    model, groups = copy.deepcopy(whole_resnet18)
    pruner = MagnitudePruner(
        model, 0.3, rates="lamp", budget=budget, groups=groups, round_to=round_to
    )
    counts = multiples(pruner, round_to)
    assert any(count % 8 for count in counts) == (round_to == 1)
    assert 0.99 * pruner.budget.total <= pruner.kept <= pruner.budget.total
    removed = remove_channels(pruner, X[:1])
    assert list(removed.counts.values()) == counts
    assert pruner.kept == (
        removed.parameters[1] if budget == "params" else total_multiply_adds(removed.model, (X,))
    )


@pytest.mark.parametrize("budget", ["flops", "params", "channels"])
@pytest.mark.parametrize("kind", ["hydra", "held", "hinge", "rates"])
def test_learned_to_the_end(kind, budget):
    model = resnet18(10, SHAPE, width=16)
    options = {
        "budget": budget,
        "groups": channel_groups(model, X[:1]),
        "round_to": 8,
        "example_inputs": X[:1],
    }
    if kind == "hydra":
        pruner = HydraPruner(model, 0.5, **options)
    elif kind == "rates":
        pruner = HarpPruner(model, 0.5, learn=("rates",), **options)
    else:
        pruner = HarpPruner(model, 0.5, control=kind, **options)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0, momentum=0.9)
    pruner.follow(optimizer, epochs=2, steps_per_epoch=3)
    y = torch.arange(4)
    for step in range(6):
        loss = F.cross_entropy(model(X), y) + pruner.budget_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        multiples(pruner, 8)
        if step == 5 and kind != "hinge":
            assert pruner.kept <= pruner.budget.total
    pruner.set_phase("finetune")
    counts = multiples(pruner, 8)
    assert 0.97 * pruner.budget.total <= pruner.kept <= pruner.budget.total
    assert list(remove_channels(pruner, X[:1]).counts.values()) == counts


def test_groups_that_blocks_do_not_divide_keep_any_count():
    model, x = build("concat"), X[:1]  # groups of 8 and 12 channels
    groups = channel_groups(model, x)
    pruner = MagnitudePruner(model, 0.7, groups=groups, round_to=4, budget="flops",
                             example_inputs=x)  # fmt: skip
    assert multiples(pruner, 4)
    pruner.finalize()
    pruner = MagnitudePruner(model, 0.8, groups=groups, round_to=8, budget="flops",
                             example_inputs=x)  # fmt: skip
    odd = dict(zip(pruner.budget.sizes, multiples(pruner, 8), strict=True))[12]
    assert odd % 4 and pruner.budget.steps.count(1) == 1


def test_given_rates_and_iterative_pruning():
    model = resnet18(10, SHAPE, width=16)
    groups = channel_groups(model, X[:1])
    rates = {group.name: 0.3 for group in groups}
    pruner = MagnitudePruner(model, groups=groups, rates=rates, round_to=8)
    # Blocks that hold the share asked for: .3 of 16, 32, 64, 128 channels is 4.8, 9.6, ...
    wanted = {16: 8, 32: 16, 64: 24, 128: 40}
    assert multiples(pruner, 8) == [wanted[group.size] for group in groups]
    assert pruner.kept == pruner.budget.total
    pruner.finalize()
    pruner = MagnitudePruner(model, 0.9, groups=groups, budget="flops", round_to=8,
                             example_inputs=X[:1])  # fmt: skip
    for density in (0.6, 0.3):
        pruner.set_density(density)
        multiples(pruner, 8)
        assert 0.9 * pruner.budget.total < pruner.kept <= density * pruner.budget.full


def test_the_state_is_of_one_block_size():
    def attached(round_to: int) -> MagnitudePruner:
        model = resnet18(10, SHAPE, width=16)
        groups = channel_groups(model, X[:1])
        return MagnitudePruner(model, 0.5, groups=groups, round_to=round_to)

    eight = attached(8)
    attached(8).load_state_dict(eight.state_dict())
    with pytest.raises(ValueError, match="another pruner: round_to was 8, here 16"):
        attached(16).load_state_dict(eight.state_dict())
    one = attached(1).state_dict()
    with pytest.raises(ValueError, match="round_to was 1, here 8"):
        eight.load_state_dict(one)
    del one["settings"]["round_to"]  # a state from before there were blocks
    attached(1).load_state_dict(one)
    with pytest.raises(ValueError, match="round_to was 1, here 8"):
        eight.load_state_dict(one)


def test_bad_values():
    model = resnet18(10, SHAPE, width=16)
    groups = channel_groups(model, X[:1])
    options = {"groups": groups, "budget": "flops", "example_inputs": X[:1]}
    for wrong in (0, -8):
        with pytest.raises(ValueError, match=f"round_to is {wrong}; legal: 1"):
            MagnitudePruner(model, 0.5, round_to=wrong, **options)
    for wrong in (8.0, "8", True, None):
        with pytest.raises(TypeError, match=f"round_to is {wrong!r}; legal: an integer"):
            MagnitudePruner(model, 0.5, round_to=wrong, **options)
    with pytest.raises(ValueError, match="round_to is 7, which divides .* they have 16, 32, 64, 1"):
        MagnitudePruner(model, 0.5, round_to=7, **options)
    with pytest.raises(ValueError, match="groups are of single weights.*channel_groups"):
        HydraPruner(nn.Linear(16, 16), 0.5, round_to=8)
    with pytest.raises(ValueError, match="round_to is 8, but the groups are of single weights"):
        HydraPruner(nn.Linear(16, 16), pattern="2:4", round_to=8)
    # HARP would begin at 10 %, which buys the blocks; its target does not.
    for pruner, density in ((MagnitudePruner, 0.05), (HarpPruner, 0.05)):
        with pytest.raises(ValueError, match=r"density is 0.05 and leaves .*round_to=16.*already"):
            pruner(model, density, round_to=16, **options)
    assert not any("pruner_masks" in name for name in model.state_dict())


# --- n:m patterns -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_a_learned_pattern_is_exact_in_every_row_at_every_stage(n, m, tmp_path):
    model = small()
    pruner = HydraPruner(model, pattern=f"{n}:{m}")
    assert pruner.left_dense == ("0.weight",)

    def check(network):
        for i in (3, 6, 8):
            assert counts_of_every(network[i].weight, m) == {n}

    check(model)
    before = [mask.mask.clone() for mask in pruner.masks]
    for _ in train_steps(pruner, "prune", lr=1.0):
        check(model)
    assert any(
        not torch.equal(a, b.mask) for a, b in zip(before, pruner.masks, strict=True)
    )  # learned
    for _ in train_steps(pruner, "finetune", lr=0.05):
        check(model)
    save(tmp_path / "c", model=model, pruner=pruner)
    again = small(1)
    other = HydraPruner(again, pattern=f"{n}:{m}")
    load(tmp_path / "c").restore(model=again, pruner=other)
    check(again)
    for mine, theirs in zip(pruner.masks, other.masks, strict=True):
        assert torch.equal(mine.mask, theirs.mask)
    plain = small(2)
    plain.load_state_dict(dense_state_dict(model))
    check(plain)
    pruner.finalize()
    check(model)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("m", [4, 8])
@pytest.mark.parametrize("budget", ["params", "flops"])
def test_each_layer_learns_its_n_within_the_budget(m, budget, tmp_path):
    def network():
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.Linear(32, 8),
        )

    model, x = network(), torch.rand(2, 1, 8, 8)
    options = {"pattern": f"n:{m}", "budget": budget, "example_inputs": x}
    pruner = HarpPruner(model, 0.5, **options)
    positions = {2: 1 if budget == "params" else 16, 4: 1, 6: 1, 7: 1}
    most = (positions[2] * 576 + 8192 + 2048 + 256) // 2

    def check(model):
        ns, kept = [], 0
        for i, each in positions.items():
            (n,) = counts_of_every(model[i].weight, m)
            kept += each * int((model[i].weight != 0).sum())
            ns.append(n)
        assert kept <= most
        return ns, kept

    assert check(model) == ([m // 2] * 4, most)
    # As if the loss had the third layer pruned for the sake of the fourth.
    for mask, pull in zip(pruner.masks, (0, 0, 3.0, -3.0), strict=True):
        mask.rate.requires_grad_(True)
        mask.rate.register_hook(lambda grad, pull=pull: torch.full_like(grad, pull))
    for _ in train_steps(pruner, "prune", lr=1.0, count=20):
        check(model)
    for _ in train_steps(pruner, "finetune", lr=0.05):
        ns, kept = check(model)
    assert ns[2] < m // 2 < ns[3]
    save(tmp_path / "c", model=model, pruner=pruner)
    again = network()
    other = HarpPruner(again, 0.5, **options)
    load(tmp_path / "c").restore(model=again, pruner=other)
    assert check(again) == (ns, kept)
    assert other.kept == pruner.kept == kept
    pruner.finalize()
    assert check(model) == (ns, kept)


def by_trying_all(wishes, costs, total, m):
    """The least weighted squared distance to the wishes of all m^L choices within the total."""
    return min(
        sum(c * (n - e) ** 2 for c, n, e in zip(costs, counts, wishes, strict=True))
        for counts in itertools.product(range(1, m + 1), repeat=len(costs))
        if sum(c * n for c, n in zip(costs, counts, strict=True)) <= total
    )


def test_the_choice_by_layer_is_the_nearest_of_all():
    generator = random.Random(0)
    for trial in range(150):
        m = generator.choice([2, 4, 4, 8])
        layers = generator.randint(1, 5 if m < 8 else 4)
        costs = [generator.choice([1, 2, 9, 10, 64, 300]) for _ in range(layers)]
        total = generator.randint(sum(costs), m * sum(costs))
        wishes = [generator.uniform(1, m) for _ in range(layers)]
        counts = nearest(wishes, costs, total, most=[m] * len(costs))
        assert all(1 <= n <= m for n in counts), trial
        assert sum(c * n for c, n in zip(costs, counts, strict=True)) <= total, trial
        off = sum(c * (n - e) ** 2 for c, n, e in zip(costs, counts, wishes, strict=True))
        assert off == pytest.approx(by_trying_all(wishes, costs, total, m), rel=1e-9), trial


def test_the_budget_is_never_exceeded_and_spent_until_no_step_fits():
    generator = random.Random(1)
    for trial in range(150):
        m, layers = generator.choice([2, 4, 8]), generator.choice([1, 3, 20, 60])
        rows = [generator.choice([1, 2, 9, 10, 64, 300]) for _ in range(layers)]
        unit = [generator.choice([1, 1, 4, 50]) for _ in range(layers)]
        density = generator.uniform(1 / m, 1)
        whole = Budget.of([m * r for r in rows], unit, density, unit="flops")
        kept = PatternBudget.of_every(m, whole).round(
            [generator.uniform(1 / m, 1) for _ in range(layers)]
        )
        assert all(k % r == 0 and r <= k <= m * r for k, r in zip(kept, rows, strict=True)), trial
        left = whole.total - sum(c * k for c, k in zip(unit, kept, strict=True))
        assert left >= 0, trial
        steps = zip(kept, rows, unit, strict=True)
        assert all(k == m * r or c * r > left for k, r, c in steps), trial


def test_a_large_layer_is_not_starved_by_small_ones():
    """Rounding every layer down first would leave it at 1 of 4, and a third of the budget over."""
    budget = PatternBudget.of_every(4, Budget.of([3600, 400], [1, 1], 0.5))
    assert budget.round([0.45, 0.95]) == [1800, 200]


def test_the_least_density():
    model = small()
    pruner = HarpPruner(model, 0.25, pattern="n:4")
    for _ in train_steps(pruner, "prune", lr=1.0):
        assert [counts_of_every(model[i].weight, 4) for i in (3, 6, 8)] == [{1}] * 3
