"""Inputs that two networks are compared on, and gradients that one of them may have lost."""

import torch
from torch import nn

from robust_plugin.copies.agreement import Trial, outputs, random_like, same_gradients, trials


def test_random_inputs_have_the_range_of_the_given_ones():
    images = 5 + 2 * torch.rand(1, 3, 8, 8, dtype=torch.float64)
    words = torch.tensor([[3, 1, 2]])
    mask = torch.tensor([[0.0, float("-inf"), 0.0]])
    drawn = random_like((images, words, mask, torch.zeros(6, 2)), 4)
    assert [tuple(x.shape) for x in drawn] == [(4, 3, 8, 8), (4, 3), (4, 3), (6, 2)]
    assert drawn[0].dtype == torch.float64 and float(drawn[0].std()) > 0
    assert images.amin() <= drawn[0].amin() and drawn[0].amax() <= images.amax()
    assert torch.equal(drawn[1], words.repeat(4, 1)) and torch.equal(drawn[2], mask.repeat(4, 1))
    assert 0 <= float(drawn[3].amin()) < float(drawn[3].amax()) <= 1


class Strict(nn.Module):
    """Takes zeros alone in evaluation mode, and targets in training."""

    def forward(self, x, targets=None):
        if x.any() or (self.training and targets is None):
            raise ValueError("not these")
        return x


def test_what_the_network_does_not_run_on_is_left_out():
    x = (torch.zeros(1, 3),)
    assert trials(Strict(), x) == [Trial(x)]
    modes = [each.training for each in trials(nn.Linear(3, 2), x)]
    assert modes == [False, False]  # training computes the same
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = model[1].running_mean.clone()
    found = trials(model, x)
    assert [each.training for each in found] == [False, False, True] and len(
        found[2].inputs[0]
    ) == 4
    assert torch.equal(model[1].running_mean, before) and model.training


def test_noise_is_alike_whatever_the_number_of_channels():
    class Noisy(nn.Module):
        def forward(self, x):
            x = nn.functional.dropout(x, 0.5, self.training) + torch.randn_like(x)
            return x * torch.empty_like(x).bernoulli_(0.5)

    wide, narrow = torch.ones(4, 8, 5, 5), torch.ones(4, 3, 5, 5)
    one, other = (outputs(Noisy(), Trial((x,), training=True))[0] for x in (wide, narrow))
    assert torch.equal(one[:, :3], other) and len(one.unique()) > 2


def test_gradients_of_another_backward_pass_are_others():
    class Doubled(nn.Sequential):
        def forward(self, x):
            out = super().forward(x)
            return 2 * out - out.detach()

    layer, x = nn.Linear(3, 2), (torch.rand(4, 3),)
    assert same_gradients(layer, nn.Sequential(layer), x)
    assert not same_gradients(layer, Doubled(layer), x)
    assert not same_gradients(layer, lambda x: layer(x).detach(), x)
    assert same_gradients(lambda x: layer(x).detach(), layer, x)


def test_the_generators_of_other_gpus_are_left_alone(monkeypatch):
    """torch.manual_seed would reach for them, and nobody restores those."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    layer, x = nn.Linear(2, 2), torch.rand(1, 2)
    before = torch.get_rng_state()
    outputs(layer, Trial((x,)))
    assert seeded == [] and torch.equal(torch.get_rng_state(), before)


def test_slopes_that_are_drawn_for_each_channel_are_no_mixing():
    x = torch.randn(4, 3)
    found = outputs(nn.RReLU(), Trial((x,), training=True))[0]
    assert torch.equal(found, outputs(nn.RReLU(), Trial((x,), training=True))[0])
    assert torch.equal(outputs(nn.RReLU(), Trial((x[:, :1],), training=True))[0], found[:, :1])
