"""Warnings of layers that a trace of the network does not contain."""

import warnings

import pytest
import torch
from torch import nn

from robust_plugin.channels.reach import warn_of_unseen

X = torch.rand(2, 4)


class Branches(nn.Module):
    """A head for training, one that never runs, and an attention that calls no layer of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.training_only, self.idle = nn.Linear(6, 3), nn.Linear(6, 3)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        hidden = self.body(x)
        hidden = hidden + self.attention(hidden[:, None], hidden[:, None], hidden[:, None])[0][:, 0]
        out = self.head(hidden)
        return out + self.training_only(hidden) if self.training else out


SEEN = {"body", "head", "attention"}


def said_of(model, ignored=()):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_unseen(model, (X,), SEEN, ignored)
    return [str(each.message) for each in said]


def test_layers_outside_the_trace_are_named_by_whether_they_run():
    model = Branches()
    outside, never = said_of(model)
    assert "layers training_only run outside the graph" in outside
    assert "layers idle never ran on example_inputs" in never
    assert model.training and not any(layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.parametrize("names", [("training_only",), ("idle",), ("training_only", "idle")])
def test_named_layers_are_not_warned_of(names):
    model = Branches()
    text = " ".join(said_of(model, [model.get_submodule(name) for name in names]))
    for name in ("training_only", "idle"):
        assert (name in text) == (name not in names)


def test_a_trace_of_everything_says_nothing():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unseen(model, (X,), {"0", "2"}, ())


def test_many_layers_are_cut_short():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    with pytest.warns(UserWarning, match="layers 0, 1, 2, 3 and 2 others run outside"):
        warn_of_unseen(model, (X,), (), ())
