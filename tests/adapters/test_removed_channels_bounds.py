"""Bounds of a network with masked channels are those of the network without the channels."""

import pytest
import torch
from torch import nn

from robust_plugin import HarpPruner, HydraPruner, ThreatModel, certified, ibp_margins
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels
from robust_plugin.certificates.ibp import IBP

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


def chain():
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


NETWORKS = {"chain": chain, "residual": Block}
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
    model = chain()
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
