"""Planted faults are found, and sound networks are left in peace."""

import pytest
import timm
import torch
import torchvision
from suspect_networks import HONEST, digits, mlp, normed_cnn, trained  # noqa: E402
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


class Centred(nn.Module):
    """Takes the mean of the batch from its inputs, as adaptation at test time does."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x - x.mean(0) + 0.3)


class Ranked(nn.Module):
    """Gives each point's logits less their mean over the batch."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        logits = self.layers(x)
        return logits - logits.mean(0)


@pytest.mark.parametrize(
    "build",
    [lambda: normed_cnn(statistics=False), lambda: Centred(mlp()), lambda: Ranked(mlp())],
    ids=["BatchNorm without statistics", "centred inputs", "centred logits"],
)
def test_logits_that_depend_on_the_batch_are_a_finding(build):
    x, y = digits(40)
    model = build().eval()
    with torch.no_grad():  # so it is: each point alone, or two of them, give other logits
        together, apart = model(x), torch.cat([model(part) for part in x.split(2)])
    assert not torch.allclose(together, apart, atol=1e-3)
    report = evaluate(model, [(x, y)], attacks=[lambda m, x, y: x], threat=ThreatModel("Linf", 0.1))
    assert ["depend on the other points of its batch" in each for each in report.findings] == [True]
    assert set(report.remarks.values()) == {"doubtful, see the findings"}


@pytest.mark.parametrize("name", HONEST)
def test_logits_of_each_point_by_itself_are_no_finding(name):
    assert found(trained(name, HONEST[name]), digits(40)) == ()


class Narrow(nn.Module):
    """Computes in half precision on the way, and returns float32."""

    def __init__(self, layers, dtype):
        super().__init__()
        self.layers, self.dtype = layers, dtype

    def forward(self, x):
        with torch.autocast("cpu", self.dtype):
            return self.layers(x).float()


def test_autocast_in_the_forward_is_called_by_its_name():
    (finding,) = found(Narrow(trained("mlp", mlp), torch.bfloat16), digits(40))
    assert "computes in torch.bfloat16 on the way (autocast" in finding


class Fixed(nn.Module):
    """Takes batches of 16 alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.reshape(16, 64))


def test_a_network_of_one_batch_size_is_evaluated():
    assert found(Fixed(), digits(16)) == ()
