"""Each way of hiding a gradient fails the check that is made for it; honest networks pass all."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from robust_plugin import ThreatModel
from robust_plugin.evaluation.obfuscated_gradients import _falling, obfuscation

THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(200):
            rows = torch.randint(200, len(x), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval(), x[:100], y[:100]


class Round(torch.autograd.Function):
    """Sixteen levels, and no gradient, as a quantising layer has it."""

    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class Wrapped(nn.Module):
    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.change(self.model, x)


def failed(model, x, y, **options):
    found = obfuscation(model, x, y, THREAT, **options)
    return " | ".join(check.name for check in found.failed), found


def test_an_honest_network_passes(digits):
    model, x, y = digits
    parent = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    state = torch.get_rng_state()
    names, found = failed(model, x, y, parent=parent)
    assert names == "" and len(found.checks) == 6 and all(c.passed for c in found.checks)
    assert found.verdict.startswith("no sign of obfuscated gradients in 6 checks on ")
    assert torch.equal(torch.get_rng_state(), state)
    assert found == obfuscation(model, x, y, THREAT, parent=parent)


def test_a_quantising_layer_is_found(digits):
    model, x, y = digits
    names, found = failed(Wrapped(model, lambda m, x: m(Round.apply(x))), x, y, parent=model)
    assert "whole box" in names and "loss rises" in names
    assert "attack without them" in names and "against the parent" in names
    assert found.verdict.startswith("robust accuracy is not to be trusted")


def test_saturated_probabilities_are_found(digits):
    model, x, y = digits
    names, _ = failed(Wrapped(model, lambda m, x: (1000 * m(x)).softmax(1)), x, y)
    assert "whole box" in names or "attack without them" in names


def test_a_gradient_that_points_back_is_found(digits):
    model, x, y = digits

    class Back(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return -grad

    names, _ = failed(Wrapped(model, lambda m, x: m(Back.apply(x))), x, y)
    assert "whole box" in names and "loss rises" in names and "attack without them" in names


class Alarmed(nn.Module):
    """Right again once a mean perturbation of .06 gives the adversary away; fooled from .033 on.

    One pixel has the class, 0 or 1, beyond these perturbations; the others are 0.
    """

    def forward(self, x):
        signal = 20 * (x[:, 0, 0, 0] - 0.5)
        others = x.flatten(1)[:, 1:].mean(1)
        signal = torch.where(others > 0.06, signal, signal * (1 - 30 * others))
        return torch.stack([-signal, signal], 1)


def test_accuracy_that_rises_with_radius_and_steps_is_found():
    x, y = torch.zeros(60, 1, 8, 8), torch.arange(60) % 2
    x[:, 0, 0, 0] = y.float()
    names, found = failed(Alarmed(), x, y)
    for check in ("does not rise with the radius", "does not rise with the steps", "loss rises"):
        assert check in names
    by_radius = next(check for check in found.checks if "with the radius" in check.name)
    assert by_radius.detail.startswith("0.025: 100.0%, 0.05: 0.0%, 0.1: 0.0%, ")
    assert "0.4: 100.0%; the largest rise is 93.3%; up to 3.3% are" in by_radius.detail


def test_other_shapes_are_not_shown_squares(digits):
    _, x, y = digits
    model = nn.Linear(64, 10)
    _, found = failed(model, x.flatten(1), model(x.flatten(1)).argmax(1))
    assert [c.passed for c in found.checks].count(None) == 1
    assert "not run" in str(found) and "Square needs images" in str(found)


def test_bad_input(digits):
    model, x, y = digits
    with pytest.raises(ValueError, match="eps is 0"):
        obfuscation(model, x, y, ThreatModel("Linf", 0))
    with pytest.raises(ValueError, match="none of these points right"):
        obfuscation(model, x, (model(x).argmax(1) + 1) % 10, THREAT)


@pytest.mark.parametrize("n", [1, 49, 50])
def test_a_verdict_takes_fifty_points(n, digits):
    model, x, y = digits
    right = (model(x).argmax(1) == y).nonzero().flatten()[:n]
    _, honest = failed(model, x[right], y[right])
    names, hidden = failed(Wrapped(model, lambda m, x: m(Round.apply(x))), x[right], y[right])
    if n < 50:
        said = f"for a verdict on obfuscated gradients: {n} are right clean, and it takes 50"
        assert said in honest.verdict and said in hidden.verdict
        assert all(check.name in hidden.verdict for check in hidden.failed)
        assert str(hidden).endswith(hidden.verdict)
    else:
        assert honest.verdict == f"no sign of obfuscated gradients in 5 checks on {n} points"
        assert "not to be trusted" in hidden.verdict and "whole box" in names


@pytest.mark.parametrize(
    ("n", "rise", "passed", "said"),
    [
        (100, 3, True, "the largest rise is 3.0%; up to 3.0% are allowed (3% of the 100 points)"),
        (100, 4, False, "the largest rise is 4.0%; up to 3.0% are allowed (3% of the 100 points)"),
        (50, 2, True, "the largest rise is 4.0%; up to 4.0% are allowed (2 of 50 points)"),
        (50, 3, False, "the largest rise is 6.0%; up to 4.0% are allowed (2 of 50 points)"),
        (100, -5, True, "it rises nowhere; up to 3.0% are allowed (3% of the 100 points)"),
    ],
)
def test_a_check_names_its_tolerance(n, rise, passed, said):
    """A rise of as many points as the tolerance holds, one point more does not."""
    shares = {"1": 0.5, "5": 0.5 + rise / n}
    found = _falling("accuracy does not rise", shares, n)
    assert found.passed is passed
    assert found.detail == f"1: 50.0%, 5: {shares['5']:.1%}; {said}"


def test_every_check_that_ran_names_what_is_allowed(digits):
    model, x, y = digits
    found = obfuscation(model, x, y, THREAT, parent=model)
    assert len(found.checks) == 6
    assert all("allowed" in check.detail for check in found.checks)
