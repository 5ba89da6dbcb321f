"""Cutting channels: the smaller network computes what the masks leave, and errors are found."""

import copy
import warnings

import pytest
import torch
from wide_network import A, B, C, Wide, randomised, replay, wide_groups

from robust_plugin.channels.cut import cut, removable

X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
MASKS = [
    torch.tensor([True, False, True, True]),
    torch.tensor([False, True, True, False, True, True]),
    torch.tensor([True, True, False, True, False]),
]


def masked_by_hand(model):
    """A copy with zeros in every weight that reads a masked channel."""
    masked = copy.deepcopy(model)
    left, right, both = MASKS
    masked.both.weight.data[:, ~torch.cat([left, right])] = 0
    masked.again.weight.data[:, ~both] = 0
    masked.head.weight.data[:, ~torch.cat([both, left]).repeat_interleave(4)] = 0
    return masked


def test_the_smaller_network_computes_what_the_masked_one_computes():
    model = randomised(Wide(A, B, C))
    small, history = cut(model, (X,), wide_groups(model), MASKS, replay)
    assert history == (("left", True, [1]), ("right", True, [0, 3]), ("both", True, [2, 4]))
    assert sum(p.numel() for p in small.parameters()) == sum(
        p.numel() for p in Wide(3, 4, 3).parameters()
    )
    torch.testing.assert_close(small(X), masked_by_hand(model)(X))
    assert model.left.weight.shape[0] == A  # the model itself is as it was


def test_masks_that_keep_everything_leave_no_history():
    model = randomised(Wide(A, B, C))
    everything = [torch.ones_like(mask) for mask in MASKS]
    small, history = cut(model, (X,), wide_groups(model), everything, replay)
    assert history == () and torch.equal(small(X), model(X))


def other_channels(model, inputs, history):
    replay(model, inputs, [(layer, makes, [c - 1 for c in gone]) for layer, makes, gone in history])


def one_layer_too_few(model, inputs, history):
    head = copy.deepcopy(model.head)
    replay(model, inputs, history)
    model.head = head


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (other_channels, "left.weight was left with shape .* or other values"),
        (one_layer_too_few, "head.weight was left with shape .3, 36. .* masks ask for .3, 24."),
    ],
)
def test_a_network_that_was_cut_otherwise_is_refused(wrong, says):
    model = randomised(Wide(A, B, C))
    with pytest.raises(ValueError, match=says):
        cut(model, (X,), wide_groups(model), MASKS, wrong)


def test_all_groups_of_a_network_that_mixes_nothing_can_be_removed():
    model = Wide(A, B, C)
    state = copy.deepcopy(model.state_dict())
    groups = wide_groups(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert removable(model, (X,), groups, {}, replay) == groups
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Mixing(Wide):
    """Normalises over the channels of ``both``, which no layer says."""

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        hidden = self.both(self.norm(torch.cat([left, right], 1)).relu()).softmax(1)
        hidden = hidden + self.again(hidden.relu())
        out = torch.cat([hidden, self.depthwise(left)], 1)
        return self.head(torch.nn.functional.adaptive_avg_pool2d(out.relu(), 2).flatten(1))


def test_a_group_whose_channels_are_mixed_is_left_out():
    model = Mixing(A, B, C)
    groups = wide_groups(model)
    with pytest.warns(UserWarning, match="2 groups of channels; 2 others stay dense") as said:
        assert removable(model, (X,), groups, {"stem": "is frozen"}, replay) == groups[:2]
    text = str(said[0].message)
    assert "both: something between mixes the channels" in text and "stem: is frozen" in text


def test_no_group_left_is_an_error_with_the_reasons():
    model = Mixing(A, B, C)
    with pytest.raises(ValueError, match="Mixing has no channels .*both: something between mixes"):
        removable(model, (X,), wide_groups(model)[2:], {}, replay)


def test_a_replay_that_fails_is_the_reason():
    model = Wide(A, B, C)

    def broken(model, inputs, history):
        raise RuntimeError("no such layer")

    with pytest.raises(ValueError, match="they cannot be cut .no such layer."):
        removable(model, (X,), wide_groups(model), {}, broken)


class OnlyWide(Wide):
    """Runs with all its channels only."""

    def forward(self, x):
        assert self.again.weight.shape[1] == C, "the layer was cut"
        return super().forward(x)


def test_a_network_that_does_not_run_without_channels_is_named():
    model = OnlyWide(A, B, C)
    with pytest.warns(UserWarning, match="both: without them the network does not run .the layer"):
        found = removable(model, (X,), wide_groups(model), {}, replay)
    assert [group.name for group in found] == ["left", "right"]
