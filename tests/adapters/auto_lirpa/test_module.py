"""The library's module: updated from the network, and checked before its first use."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from robust_plugin import (
    IBP,
    HarpPruner,
    ThreatModel,
    finalize,
    ibp_margins,
)
from robust_plugin.adapters.auto_lirpa import LiRPA, certifier, module

# What the self-check says of wrong bounds; a network that the library fails at proves nothing.
CAUGHT = "is unsound on this network|are not to be believed"


def learned(cnn, density=0.3):
    model = cnn().double()
    with torch.no_grad():
        model[1].running_mean.normal_(std=0.1), model[1].running_var.uniform_(0.5, 2)
    pruner = HarpPruner(model, density)
    pruner.set_phase("prune")
    for mask in pruner.masks:
        nn.init.normal_(mask.scores)
        mask.unfollowed = False
    pruner.update_masks()
    return model, pruner


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "same-slope"])
def test_gradients_to_weights_scores_and_rates(cnn, batch, method, check_gradients):
    model, pruner = learned(cnn)
    x, y = batch[0][:2].double(), batch[1][:2]
    certifier = LiRPA(ThreatModel("Linf", eps=0.02), method)
    check_gradients(model, pruner, lambda net: certifier.bounds(net, x, y))


def test_training_leaves_modes_and_flags_and_the_twin_follows(cnn, batch, threat):
    model, (x, y) = cnn(), batch
    model[0].weight.requires_grad_(False)
    model[1].eval()
    flags = [m.training for m in model.modules()]
    certifier = LiRPA(threat, "CROWN-IBP")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        # Two bounds in one loss: the second must not spoil the graph of the first.
        loss = -certifier.bounds(model, x, y).sum() - certifier.bounds(model, x[:4], y[:4]).sum()
        optimizer.zero_grad()
        loss.backward()
        assert model[0].weight.grad is None and model[6].weight.grad.abs().sum() > 0
        optimizer.step()
        with torch.no_grad():
            model[1].running_mean += 0.1  # as a forward pass in training mode moves it
        fresh = LiRPA(threat, "CROWN-IBP").bounds(model, x, y)
        assert torch.equal(certifier.bounds(model, x, y), fresh)
    assert [m.training for m in model.modules()] == flags
    assert not model[0].weight.requires_grad and model[6].weight.requires_grad


def test_alpha_crown_of_a_network_without_unstable_units_is_crown(cnn, batch):
    model, tiny = cnn(), ThreatModel("Linf", eps=0.0)
    found = LiRPA(tiny, "alpha-CROWN").margins(model, *batch)
    assert torch.allclose(found, IBP(tiny).margins(model, *batch), atol=1e-4)


def dilated(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=2, dilation=2), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_patches_mode_would_be_caught(batch, monkeypatch, highest_excess, seed):
    """auto-LiRPA's default is unsound for dilated convolutions."""
    library = certifier._library()
    build = library.BoundedModule.__init__

    def patches(self, model, dummy, options, **others):
        build(self, model, dummy, {**options, "conv_mode": "patches"}, **others)

    model, threat = dilated(seed), ThreatModel("Linf", eps=0.01)
    sound = LiRPA(threat, "CROWN").margins(model, *batch)
    assert highest_excess(model, *batch, threat, sound) <= 0
    monkeypatch.setattr(library.BoundedModule, "__init__", patches)
    with pytest.raises(ValueError, match=CAUGHT):
        LiRPA(threat, "CROWN").margins(model, *batch)


class Times(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


class Masked:
    """A twin that has its masks in the trace."""

    def __init__(self, model):
        self.network = copy.deepcopy(model).eval()
        finalize(self.network)
        for layer in (self.network[0], self.network[3], self.network[6]):
            mask = (layer.weight != 0).to(layer.weight.dtype)
            parametrize.register_parametrization(layer, "weight", Times(mask))

    def following(self, model, compute):
        return compute()


def test_a_mask_in_the_trace_would_be_caught(cnn, batch, monkeypatch):
    model, _ = learned(cnn, density=0.5)
    assert torch.equal(Masked(model).network(batch[0].double()), model.eval()(batch[0].double()))
    monkeypatch.setattr(module, "PlainCopy", Masked)
    with pytest.raises(ValueError, match=CAUGHT):
        LiRPA(ThreatModel("Linf", eps=0.05), "IBP").margins(model, batch[0].double(), batch[1])


def test_a_ball_that_was_dropped_would_be_caught(cnn, batch, threat, monkeypatch):
    """Slicing a BoundedTensor gives a plain one; then everything is "verified"."""
    library = certifier._library()
    made = library.BoundedTensor
    monkeypatch.setattr(library, "BoundedTensor", lambda x, ball: made(x, ball)[:])
    for method in ("IBP", "CROWN"):
        with pytest.raises(ValueError, match=CAUGHT):
            LiRPA(threat, method).margins(cnn(), *batch)


def test_stale_statistics_would_be_caught(cnn, batch, threat, monkeypatch):
    model = cnn()
    certifier = LiRPA(threat, "IBP")

    def apart():
        model.train()(torch.randn(16, 1, 8, 8))
        found = certifier.bounds(model, *batch) - ibp_margins(model, *batch, threat)
        return float(found.detach().abs().max())

    assert apart() < 1e-4 and apart() < 1e-4
    monkeypatch.setattr(module.CopyBounds, "_load_buffers", lambda self: None)
    assert apart() > 1e-2


def test_the_box_is_the_threat_models(batch):
    """Pixels at the border: half of the ball is outside."""
    model, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), batch[1][:2]
    x, threat = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]).double(), None
    for low, high in ((0.0, 1.0), (-0.05, 1.02)):
        threat = ThreatModel("Linf", eps=0.1, low=low, high=high)
        rows = model[1].weight[y][:, None] - model[1].weight
        ends = torch.stack([(x - 0.1).clamp(low, high), (x + 0.1).clamp(low, high)]).flatten(2)
        products = rows * ends[:, :, None]
        shift = model[1].bias[y][:, None] - model[1].bias
        wanted = torch.minimum(products[0], products[1]).sum(-1) + shift
        for method in ("IBP", "CROWN", "CROWN-IBP"):
            assert torch.allclose(LiRPA(threat, method).margins(model, x, y), wanted, atol=1e-9)
