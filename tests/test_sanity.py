"""Planted faults are found, and sound networks are left in peace."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from robust_plugin import HydraPruner, ThreatModel, evaluate


class Quantise(nn.Module):
    """Rounds in the forward pass, and has the gradient zero, as rounding has."""

    def forward(self, x):
        return (x * 8).round() / 8


class StraightThrough(nn.Module):
    """Rounds, and pretends that it does not: the gradient of another function."""

    def forward(self, x):
        return x + ((x * 2).round() / 2 - x).detach()


class HalfDetached(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 0.1 * self.layer(x) + 3 * self.layer(x).detach()


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


class AlwaysNoise(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


def found(model, batch):
    return evaluate(model, [batch], attacks=[]).findings


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (lambda m: nn.Sequential(m, nn.Softmax(1)), "look like probabilities"),
        (lambda m: nn.Sequential(Quantise(), m), "exactly zero at 16 of 16 points"),
        (lambda m: nn.Sequential(StraightThrough(), m), "not that of the outputs"),
        (lambda m: HalfDetached(m), "not that of the outputs"),
        (lambda m: nn.Sequential(m, Detached()), "do not depend on the inputs by autograd"),
    ],
    ids=["softmax", "quantise", "straight-through", "half detached", "detached"],
)
def test_planted_faults_are_found(plant, says, cnn, batch):
    model = plant(cnn()).eval()
    findings = found(model, batch)
    assert len(findings) == 1 and says in findings[0]
    assert f"finding: {findings[0]}" in str(evaluate(model, [batch]))


def test_training_mode_is_no_finding(cnn, batch):
    """A loop leaves its model so; evaluate takes evaluation mode itself, for the same report."""
    model = cnn().eval()
    expected = evaluate(model, [batch])
    assert evaluate(model.train(), [batch]) == expected and expected.findings == ()
    assert all(module.training for module in model.modules())


def test_noise_that_ignores_evaluation_mode_is_refused(cnn, batch):
    with pytest.raises(ValueError, match="different logits for the same input"):
        found(nn.Sequential(cnn(), AlwaysNoise()), batch)


def test_an_attack_that_steps_outside_is_refused(cnn, batch):
    with pytest.raises(ValueError, match="moved a point by"):
        evaluate(
            cnn(),
            [batch],
            attacks=[lambda model, x, y: (x + 0.3).clamp(0, 1)],
            threat=ThreatModel("Linf", 0.1),
        )


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.resnet18(num_classes=5),
        lambda: torchvision.models.convnext_tiny(num_classes=5),
        lambda: torchvision.models.vit_b_32(num_classes=5, image_size=64),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    ],
    ids=["resnet", "convnext", "vit", "mobilenet"],
)
def test_sound_networks_give_no_finding(build):
    model = build().eval()
    if hasattr(model, "heads"):  # torchvision's ViT starts with a head of zeros
        nn.init.normal_(model.heads[-1].weight)
    x = torch.rand(4, 3, 64, 64)
    assert found(model, (x, model(x).argmax(1))) == ()


def test_masked_networks_give_no_finding(cnn, batch):
    model = cnn().eval()
    HydraPruner(model, 0.3)
    assert found(model, batch) == ()
