"""n:m masks: exact in every row at every stage, chosen by layer within the budget."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, dense_state_dict
from robust_plugin.budget.budget import Budget
from robust_plugin.budget.stepped import PatternBudget, nearest
from robust_plugin.masks.select import most_kept
from robust_plugin.pruning.checkpoint import load, save
from robust_plugin.pruning.pruner import Pruner


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 8),
    )


def counts_of_every(weight, m):
    """How many of every m entries along dimension 1 are not zero, as a set; by plain loops."""
    rows = weight.detach().movedim(1, -1).reshape(-1, weight.shape[1]).tolist()
    return {
        sum(value != 0 for value in row[i : i + m]) for row in rows for i in range(0, len(row), m)
    }


def steps(pruner, phase, lr, count=6):
    """SGD with momentum and weight decay, which revive weights that only gradients leave alone."""
    x, y = torch.rand(16, 1, 8, 8), torch.randint(8, (16,))
    parameters = pruner.set_phase(phase)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-3)
    if phase == "prune":
        for group in optimizer.param_groups[1:]:
            group["weight_decay"] = 0.0
        pruner.follow(optimizer, epochs=2, steps_per_epoch=count // 2)
    for _ in range(count):
        loss = nn.functional.cross_entropy(pruner.model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield optimizer


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
    for _ in steps(pruner, "prune", lr=1.0):
        check(model)
    assert any(
        not torch.equal(a, b.mask) for a, b in zip(before, pruner.masks, strict=True)
    )  # learned
    for _ in steps(pruner, "finetune", lr=0.05):
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
    def build():
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

    model, x = build(), torch.rand(2, 1, 8, 8)
    options = {"pattern": f"n:{m}", "budget": budget, "example_inputs": x}
    pruner = HarpPruner(model, 0.5, **options)
    positions = {2: 1 if budget == "params" else 16, 4: 1, 6: 1, 7: 1}
    most = (positions[2] * 576 + 8192 + 2048 + 256) // 2

    def check(network):
        ns, kept = [], 0
        for i, each in positions.items():
            (n,) = counts_of_every(network[i].weight, m)
            kept += each * int((network[i].weight != 0).sum())
            ns.append(n)
        assert kept <= most
        return ns, kept

    assert check(model) == ([m // 2] * 4, most)
    # As if the loss had the third layer pruned for the sake of the fourth.
    for mask, pull in zip(pruner.masks, (0, 0, 3.0, -3.0), strict=True):
        mask.rate.requires_grad_(True)
        mask.rate.register_hook(lambda grad, pull=pull: torch.full_like(grad, pull))
    for _ in steps(pruner, "prune", lr=1.0, count=20):
        check(model)
    for _ in steps(pruner, "finetune", lr=0.05):
        ns, kept = check(model)
    assert ns[2] < m // 2 < ns[3]
    save(tmp_path / "c", model=model, pruner=pruner)
    again = build()
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
        counts = nearest(wishes, costs, total, m=m)
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


def test_whole_rates_are_kept_as_they_are():
    """Rates given by layer that are patterns already come out as those patterns."""
    rates = {"0.weight": 1.0, "2.weight": 0.25, "4.weight": 0.5}
    model = nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    pruner = MagnitudePruner(model, rates=rates, pattern="n:4")
    assert pruner.densities == rates
    assert [counts_of_every(model[i].weight, 4) for i in (0, 2, 4)] == [{4}, {1}, {2}]
    assert pruner.kept == pruner.budget.total == 96 + 48 + 24


@pytest.mark.parametrize("rates", ["uniform", "erk", "lamp", "global"])
def test_every_rule_of_rates_is_rounded_to_the_pattern(rates):
    model = small()
    pruner = HydraPruner(model, 0.4, rates=rates, pattern="n:4")
    assert pruner.kept <= 0.4 * 9600
    by_layer = [counts_of_every(model[i].weight, 4) for i in (3, 6, 8)]
    assert all(len(counts) == 1 for counts in by_layer)
    if rates == "erk":  # the small layer is the densest
        assert by_layer[2] == {4}


def test_the_least_density():
    model = small()
    pruner = HarpPruner(model, 0.25, pattern="n:4")
    for _ in steps(pruner, "prune", lr=1.0):
        assert [counts_of_every(model[i].weight, 4) for i in (3, 6, 8)] == [{1}] * 3


def test_finalize_checks_the_pattern():
    model = small()
    pruner = HydraPruner(model, pattern="2:4")
    for _ in steps(pruner, "prune", lr=0.1):
        pass
    mask = pruner.masks[1].mask
    mask[0, :8] = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).bool()  # the count is right
    with pytest.raises(ValueError, match="mask of 6 keeps up to 3 of 4 entries instead of 2"):
        pruner.finalize(copy.deepcopy(model))
    pruner.update_masks()
    pruner.finalize()
    assert counts_of_every(model[6].weight, 4) == {2}


def test_loading_checks_the_pattern():
    state = {}
    for pattern in ("1:4", "2:4"):
        model = small()
        HydraPruner(model, pattern=pattern)
        state[pattern] = model.state_dict()
    with pytest.raises(ValueError, match="288 of 1152 weights kept is not the pattern 2:4"):
        model.load_state_dict(state["1:4"])
    free = small()
    HydraPruner(free, 0.5, pattern="n:4")
    free.load_state_dict(state["1:4"])
    assert counts_of_every(free[6].weight, 4) == {1}
    unstructured = small()
    HydraPruner(unstructured, 0.47, exclude=["0"])
    with pytest.raises(ValueError, match="is not the pattern n:4"):
        free.load_state_dict(unstructured.state_dict())


def test_most_kept():
    assert most_kept(torch.tensor([[0.0, 1, -1, 0, 0, 0, 0, 2]]), 4) == 2
    assert most_kept(torch.zeros(3, 8, 2, 2), 4) == 0
    weight = torch.zeros(1, 8, 1, 2)
    weight[0, :3, 0, 1] = 1
    assert most_kept(weight, 4) == 3
    with pytest.raises(ValueError, match=r"n:4 needs dimension 1 divisible by 4; got \(3, 6\)"):
        most_kept(torch.zeros(3, 6), 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: HarpPruner(m, 0.5, pattern="2:4"), "a 2:4 pattern fixes the rates"),
        (lambda m: HarpPruner(m, 0.2, pattern="n:4"), "density is 0.2.*legal is 1/4 to 1"),
        (lambda m: HarpPruner(m, pattern="n:4"), "density is None"),
        (lambda m: HarpPruner(m, 0.5, pattern="n:0"), "pattern is 'n:0'; legal"),
        (
            lambda m: HarpPruner(m, 0.5, pattern="n:4", control="hinge"),
            "control is 'hinge'.*only 'held'",
        ),
        (lambda m: Pruner(m, 0.5, pattern="n:1000"), "n:1000 fits no layer"),
    ],
)
def test_what_is_refused(build, message):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        build(model)
    assert before.keys() == model.state_dict().keys()
