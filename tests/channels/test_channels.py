"""What channels cost and leave, against networks that are really smaller; no library involved."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robust_plugin import Budget, Group, HarpPruner, HydraPruner, MagnitudePruner, Member, finalize
from robust_plugin.budget.costs import count_terms, multiply_adds, total_multiply_adds
from robust_plugin.channels.entries import kept_entries, select
from robust_plugin.channels.groups import Axis, channel_group, layer_axes


class Wide(nn.Module):
    """Two stems of a and b channels, read side by side, by a depthwise layer and by a sum."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, a, 3, padding=1)
        self.right = nn.Conv2d(1, b, 3, padding=1)
        self.norm = nn.BatchNorm2d(a + b)
        self.depthwise = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.both = nn.Conv2d(a + b, c, 1)
        self.again = nn.Conv2d(c, c, 3, padding=1)
        self.head = nn.Linear(4 * (c + a), 3)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        hidden = self.both(self.norm(torch.cat([left, right], 1)).relu())
        hidden = hidden + self.again(hidden.relu())
        out = torch.cat([hidden, self.depthwise(left)], 1)
        return self.head(F.adaptive_avg_pool2d(out.relu(), 2).flatten(1))


A, B, C = 4, 6, 5


def wide_groups(model):
    """Written down by hand."""
    m, none = model, torch.tensor([-1])
    left = torch.cat([torch.arange(A), none.repeat(B)])
    right = torch.cat([none.repeat(A), torch.arange(B)])
    positions = torch.arange(C + A).repeat_interleave(4)
    in_head = torch.where(positions < C, positions, -1)
    left_in_head = torch.where(positions >= C, positions - C, -1)

    def norm(index):
        return tuple(Member(m.norm, "norm", key, 0, index) for key in ("weight", "bias"))

    def made(name):
        layer = model.get_submodule(name)
        return tuple(Member(layer, name, key, 0) for key in ("weight", "bias"))

    return (
        Group(
            (Member(m.both, "both", "weight", 1, left),
             Member(m.head, "head", "weight", 1, left_in_head)),
            A, "left", (*made("left"), *made("depthwise"), *norm(left)),
        ),
        Group((Member(m.both, "both", "weight", 1, right),), B, "right",
              (*made("right"), *norm(right))),
        Group(
            (Member(m.again, "again", "weight", 1), Member(m.head, "head", "weight", 1, in_head)),
            C, "both", (*made("both"), *made("again")),
        ),
    )  # fmt: skip


def sizes(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.rand(1, 1, 8, 8))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def test_the_cost_is_of_the_network_that_is_left_at_all_counts():
    model, x = Wide(A, B, C), torch.rand(1, 1, 8, 8)
    macs = multiply_adds(model, x)
    assert total_multiply_adds(model, x) == sizes(model)[1]
    budgets = []
    for counted in (None, macs):
        terms = count_terms(model, wide_groups(model), counted)
        assert terms.products and any(i == j for i, j, _ in terms.products)
        budgets.append(Budget((A, B, C), terms.costs, 1.0, 0, terms.products, terms.fixed))
    for counts in itertools.product(range(1, A + 1), range(1, B + 1), range(1, C + 1)):
        assert tuple(int(budget.cost(counts)) for budget in budgets) == sizes(Wide(*counts))
    assert tuple(budget.full for budget in budgets) == sizes(model)


def test_tied_weights_are_stored_once_and_computed_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 4))
    model[3].weight = model[0].weight
    group = Group(
        (Member(model[2], "2", "weight", 1),), 6, "1",
        (Member(model[1], "1", "weight", 0), Member(model[1], "1", "bias", 0)),
    )  # fmt: skip
    terms = count_terms(model, [group], None)
    assert (terms.costs, terms.products, terms.fixed) == ((7,), (), 16 + 4 + 4 + 2)
    macs = {(str(i), "weight"): 1 for i in range(4)}
    assert count_terms(model, [group], macs).fixed == 32


def test_prices_are_the_cost_of_one_more():
    generator = random.Random(0)
    for _ in range(20):
        budget = random_budget(generator)
        counts = [generator.randint(1, n) for n in budget.sizes]
        for i, (more, less) in enumerate(
            zip(budget.prices(counts, more=1), budget.prices(counts, more=-1), strict=True)
        ):
            up, down = ([n + s * (i == j) for j, n in enumerate(counts)] for s in (1, -1))
            assert more == budget.cost(up) - budget.cost(counts)
            assert less == budget.cost(counts) - budget.cost(down)
        exact = torch.tensor([float(n) for n in counts], dtype=torch.float64, requires_grad=True)
        budget.cost(list(exact)).backward()
        assert exact.grad.tolist() == budget.prices(counts)


def random_budget(generator, groups=4):
    sizes = tuple(generator.randint(4, 24) for _ in range(groups))
    pairs = [(i, j) for i in range(groups) for j in range(i, groups)]
    return Budget(
        sizes,
        tuple(generator.randint(0, 30) for _ in range(groups)),
        1.0,
        0,
        tuple((i, j, generator.randint(1, 9)) for i, j in generator.sample(pairs, 5)),
        generator.randint(0, 500),
    )


@pytest.mark.parametrize("unit", ["flops", "params", "channels"])
def test_rounding_meets_the_budget_as_well_as_integers_allow(unit):
    generator = random.Random(1)
    near = 0
    for _ in range(30):
        dense = random_budget(generator)
        density = generator.uniform(0.35, 0.9)
        budget = dense.at(density, unit)
        wishes = [generator.uniform(0.1, 1) for _ in budget.sizes]
        counts = budget.round(wishes)
        assert all(1 <= n <= size for n, size in zip(counts, budget.sizes, strict=True))
        left = budget.total - budget.cost(counts)
        assert left >= 0
        for price, n, size in zip(budget.prices(counts, more=1), counts, budget.sizes, strict=True):
            assert n == size or price > left
        near += left <= 0.01 * budget.total
        exact = budget.scaled(wishes)
        assert budget.cost(exact) == pytest.approx(budget.total, rel=1e-9) or exact == [
            float(n) for n in budget.sizes
        ]
    assert near >= 27


def test_a_held_budget_of_channels_is_met_and_falls_along_its_gradient():
    generator = random.Random(2)
    for _ in range(10):
        budget = random_budget(generator).at(0.5, "flops")
        logits = torch.randn(4, dtype=torch.float64)
        held = budget.hold(logits, 0.05)
        assert budget.share(held, 0.05) == pytest.approx(budget.total / budget.full, rel=1e-9)
        shares = [0.05 + 0.95 * k for k in logits.sigmoid().tolist()]
        kept = torch.tensor(
            [k * n for k, n in zip(shares, budget.sizes, strict=True)], requires_grad=True
        )
        budget.cost(list(kept)).backward()
        slope = kept.grad * torch.tensor(budget.sizes) * logits.sigmoid() * (1 - logits.sigmoid())
        moved = held - logits
        assert torch.nn.functional.cosine_similarity(moved.abs(), slope.double(), 0) > 1 - 1e-9
        assert bool((moved.sign() == moved.sign()[0]).all())


def test_the_hinge_is_zero_at_the_budget_and_grows_with_the_cost():
    budget = random_budget(random.Random(3)).at(0.5, "channels")
    at = [n / size for n, size in zip(budget.scaled([0.5] * 4), budget.sizes, strict=True)]
    assert float(budget.hinge([torch.tensor(k) for k in at])) == pytest.approx(0, abs=1e-5)
    rates = [torch.tensor(0.9, requires_grad=True) for _ in at]
    loss = budget.hinge(rates)
    wanted = budget.cost([0.9 * n for n in budget.sizes]) / budget.total - 1
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    loss.backward()
    prices = budget.prices([0.9 * n for n in budget.sizes])
    slopes = [p * n / budget.total for p, n in zip(prices, budget.sizes, strict=True)]
    assert [r.grad.item() for r in rates] == pytest.approx(slopes, rel=1e-4)


def test_a_weight_that_two_groups_mask():
    """Behind a concatenation; copies, states and finalize see both masks."""
    model, x = Wide(A, B, C), torch.rand(5, 1, 8, 8)
    pruner = MagnitudePruner(model, groups=wide_groups(model),
                             rates={"left": 0.5, "right": 0.5, "both": 0.6})  # fmt: skip
    left, right, both = (mask.mask.flatten() for mask in pruner.masks)
    effective = model.both.weight
    assert torch.equal(effective[0].flatten() != 0, torch.cat([left, right]))
    twin = copy.deepcopy(model)
    for mask in pruner.masks:
        mask.scores.data.neg_().add_(3)  # ranks the other way round
        mask.choose()
    assert not torch.equal(twin.both.weight, model.both.weight)
    pruner.lend_masks(twin)
    assert torch.equal(twin.both.weight, model.both.weight)
    assert torch.equal(twin(x), model(x))
    other = Wide(A, B, C)
    MagnitudePruner(other, 0.9, groups=wide_groups(other))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))
    logits = model(x)
    pruner.finalize()
    assert type(model.both) is nn.Conv2d and torch.equal(model(x), logits)
    assert list(model.state_dict()) == list(Wide(A, B, C).state_dict())
    finalize(twin)
    assert torch.equal(twin.eval()(x), logits)


def test_both_groups_learn_through_one_weight():
    model = Wide(A, B, C).eval()
    nn.init.ones_(model.norm.bias)  # no dead channel
    pruner = HydraPruner(model, 0.9, groups=wide_groups(model))
    pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
    model(torch.rand(3, 1, 8, 8)).square().sum().backward()
    assert all(float(mask.scores.grad.abs().min()) > 0 for mask in pruner.masks[:2])


def test_groups_may_share_a_weight_but_not_its_entries():
    model = Wide(A, B, C)
    left, right, both = wide_groups(model)
    clash = Group((Member(model.both, "both", "weight", 1,
                          torch.cat([torch.tensor([0]), right.members[0].index[1:]])),),
                  B, "clash")  # fmt: skip
    with pytest.raises(ValueError, match="both.weight has a mask already"):
        MagnitudePruner(model, 0.9, groups=[left, clash])
    with pytest.raises(ValueError, match="both.weight has a mask already"):
        MagnitudePruner(model, 0.9, groups=[left, Group((Member(model.both, "both", "weight"),))])


def test_kept_entries_against_the_masks():
    model = Wide(A, B, C)
    masks = [
        torch.tensor([1, 0, 1, 0]),
        torch.tensor([0, 1, 1, 1, 0, 1]),
        torch.tensor([1, 1, 0, 0, 1]),
    ]
    masks = [mask.bool() for mask in masks]
    kept = kept_entries(wide_groups(model), masks)
    small = Wide(2, 4, 3)
    for name, parameter in model.named_parameters():
        layer, _, key = name.rpartition(".")
        cut = select(parameter, kept.get((layer, key), {}))
        assert cut.shape == small.get_parameter(name).shape
    expected = model.both.weight[masks[2]][:, torch.cat(masks[:2])]
    assert torch.equal(select(model.both.weight, kept["both", "weight"]), expected)
    head = torch.cat([masks[2], masks[0]]).repeat_interleave(4)
    assert torch.equal(
        select(model.head.weight, kept["head", "weight"]), model.head.weight[:, head]
    )


def test_grouped_convolutions_tie_positions():
    conv = nn.Conv2d(12, 6, 1, groups=3)
    axes = list(layer_axes(conv, "c", range(12), range(12), makes=False))
    made = nn.Conv2d(1, 12, 1)
    axes += layer_axes(made, "m", range(12), range(12), makes=True)
    group = channel_group("m", 12, axes)
    assert group.size == 4  # positions in each third of the input
    assert group.members[0].index is None
    assert group.coupled[0].index.tolist() == [0, 1, 2, 3] * 3
    # A second grouping that ties neighbours leaves what both allow.
    other = nn.Conv2d(12, 12, 1, groups=6)
    group = channel_group(
        "m", 12, [*axes, *layer_axes(other, "o", range(12), range(12), makes=False)]
    )
    assert group.size == 2 and group.coupled[0].index.tolist() == [0, 1] * 6
    some = layer_axes(conv, "c", range(4), range(4), makes=False)
    with pytest.raises(ValueError, match="c is a grouped convolution of several producers"):
        channel_group("m", 12, list(some))


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.LayerNorm(4), "x normalises over the channels"),
        (nn.GroupNorm(2, 4), "x normalises over channels"),
        (nn.MultiheadAttention(4, 2), "x splits the channels into heads"),
        (nn.LSTM(4, 4), "x is recurrent"),
        (nn.ConvTranspose2d(4, 4, 1, groups=2), "x is a ConvTranspose2d in groups"),
        (nn.Conv2d(8, 4, 1, groups=4), "x is a Conv2d in groups that cannot be cut"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "x has running statistics"),
        (nn.Linear(3, 3), "a reshape takes them to channel 3 of 3"),
    ],
)
def test_layers_that_cannot_be_cut(layer, says):
    with pytest.raises(ValueError, match=says):
        list(layer_axes(layer, "x", range(4), range(4), makes=True))


def test_uneven_entries_are_refused():
    linear = nn.Linear(3, 2)
    axis = Axis(linear, "l", "weight", 1, torch.tensor([0, 0, 1]), masked=True)
    with pytest.raises(ValueError, match="l.weight has 1 to 2 entries a channel"):
        channel_group("g", 2, [axis])


def test_erk_is_refused_for_channels_which_have_no_shape():
    """Of one number a channel it would be (n + 1) / n for each group, which is uniform."""
    for prune in (MagnitudePruner, HydraPruner, HarpPruner):
        with pytest.raises(ValueError, match="rates is 'erk'.* for channels legal are uniform"):
            model = Wide(A, B, C)
            prune(model, 0.5, groups=wide_groups(model), rates="erk")


@pytest.mark.parametrize("kind", ["lamp", "global", "dict"])
def test_given_rates_share_a_budget_of_channels(kind):
    model, x = Wide(A, B, C), torch.rand(1, 1, 8, 8)
    options = (
        {"rates": kind} if kind != "dict" else {"rates": {"left": 0.5, "right": 1, "both": 0.2}}
    )
    density = None if kind == "dict" else 0.6
    pruner = MagnitudePruner(model, density, budget="flops", groups=wide_groups(model),
                             example_inputs=x, **options)  # fmt: skip
    counts = [int(mask.kept) for mask in pruner.masks]
    assert pruner.kept == sizes(Wide(*counts))[1]
    if kind == "dict":
        assert counts == [2, 6, 1] and pruner.budget.total == pruner.kept
    else:
        assert pruner.kept <= 0.6 * sizes(Wide(A, B, C))[1]


def test_iterative_pruning_of_channels():
    model, x = Wide(A, B, C), torch.rand(1, 1, 8, 8)
    pruner = MagnitudePruner(
        model, 0.9, budget="channels", groups=wide_groups(model), example_inputs=x
    )
    seen = []
    for density in (0.75, 0.5, 0.25):
        before = [mask.mask.clone() for mask in pruner.masks]
        pruner.set_density(density)
        assert all(bool((m.mask <= b).all()) for m, b in zip(pruner.masks, before, strict=True))
        counts = [int(mask.kept) for mask in pruner.masks]
        assert counts == [max(1, n - int((1 - density) * n)) for n in (A, B, C)]
        seen.append(pruner.kept)
        assert pruner.kept == sizes(Wide(*counts))[1]
    assert seen == sorted(seen, reverse=True)
