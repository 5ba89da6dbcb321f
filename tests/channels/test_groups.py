"""Groups of channels: what they cost, what masks on them do, and which layers they can cover.

Costs are compared with networks that are really smaller; no library that traces networks is used.
"""

import copy

import pytest
import torch
from torch import nn
from wide_network import A, B, C, Wide, sizes, wide_groups

from robust_plugin import Group, HarpPruner, HydraPruner, MagnitudePruner, Member, finalize
from robust_plugin.channels.groups import Axis, channel_group, layer_axes


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
    """Of one number per channel it would be (n + 1) / n for each group, which is uniform."""
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
