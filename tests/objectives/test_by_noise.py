"""Objectives under Gaussian noise, against their formulas."""

import pytest
import torch
from objective_formulas import sharp, trades_loss
from torch.nn import functional as F

from robust_plugin import Ramp, ThreatModel, gaussian, smoothadv, stability


def test_gaussian_equals_its_formula(cnn, batch):
    model, (x, y) = cnn().eval(), batch
    torch.manual_seed(3)
    loss = gaussian(sigma=0.5)(model, x, y)
    torch.manual_seed(3)
    wanted = F.cross_entropy(model(x + 0.5 * torch.randn_like(x)), y)
    assert loss.item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(("sigma", "beta"), [(0.25, 6.0), (0.1, 1.0)])
def test_stability_equals_its_formula(cnn, batch, sigma, beta):
    x, y = batch[0].double(), batch[1]
    model = sharp(cnn).eval()
    torch.manual_seed(2)
    loss = stability(sigma=sigma, beta=beta)(model, x, y)
    torch.manual_seed(2)
    noisy = x + sigma * torch.randn_like(x)
    wanted = trades_loss(model(x), model(noisy), y, beta)
    assert loss.item() == pytest.approx(wanted, abs=1e-6)
    modes = []
    model.train().register_forward_hook(lambda m, *_: modes.append(m.training))
    stability(sigma=sigma, beta=beta)(model, x, y).backward()
    assert modes == [True, True]


def test_smoothadv_trains_on_a_point_of_the_ball_that_is_worse(cnn, batch):
    """Attack and loss share their noise: against it, the loss is above that of the clean point."""
    model, (x, y), seen = cnn().eval(), batch, []
    threat = ThreatModel("L2", eps=0.5)
    objective = smoothadv(threat, sigma=0.1, samples=3, steps=5)
    model.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    torch.manual_seed(4)
    loss = objective(model, x, y)
    torch.manual_seed(4)
    noise = 0.1 * torch.randn(3, *x.shape)
    inputs = seen[-1].view(3, *x.shape) - noise
    assert torch.allclose(inputs[0], inputs[2], atol=1e-6)
    moved = (inputs[0] - x).flatten(1).norm(dim=1)
    assert (moved <= 0.5 + 1e-5).all() and (moved > 0.3).all()
    assert inputs.min() >= -1e-6 and inputs.max() <= 1 + 1e-6
    clean = F.cross_entropy(model((x + noise).flatten(0, 1)), y.repeat(3))
    assert loss.item() > clean.item() + 0.01
    objective.ramp = Ramp(0.0, 1.0)
    objective.progress(0, 10)
    torch.manual_seed(4)
    assert objective(model, x, y).item() == pytest.approx(clean.item(), rel=1e-5)


@pytest.mark.parametrize("make", [gaussian, stability])
def test_noise_on_inputs_of_another_unit_is_refused(cnn, batch, make):
    model, (x, y) = cnn(), batch
    for wrong in (255 * x, (x - 0.5) / 0.25):
        with pytest.raises(ValueError, match=r"outside \[0, 1\].* low=..., high=...|low=\.\.\."):
            make(sigma=0.25)(model, wrong, y)
    assert make(sigma=64.0, low=0, high=255)(model, 255 * x, y).isfinite()
    with pytest.raises(ValueError, match="low is 2 and high is 1.0"):
        make(low=2)


THREAT, L2 = ThreatModel("Linf", eps=0.02), ThreatModel("L2", eps=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian(sigma=0), "sigma is 0; legal: a number above 0"),
        (lambda: smoothadv(THREAT), "norm is Linf; smoothadv moves in L2"),
        (lambda: smoothadv(L2, sigma=-1), "sigma is -1"),
        (lambda: smoothadv(L2, samples=0), "samples is 0"),
        (lambda: stability(beta=-1), "beta is -1"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
