"""The cascade of proofs against alpha-CROWN on all points: verdicts and time, on digits."""

import time

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from robust_plugin import ThreatModel, adversarial, certified, pgd, verify
from robust_plugin.adapters.auto_lirpa import LiRPA, proof_stages
from robust_plugin.recipes.networks import cnn_small

THREAT = ThreatModel("Linf", eps=0.1)


def points():
    digits = load_digits()
    return torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target)


def trained(build, objective, epochs):
    torch.manual_seed(0)
    x, y = points()
    model = build(10, (1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        if hasattr(objective, "progress"):
            objective.progress(epoch, epochs)
        for batch in torch.randperm(1200).split(100):
            loss = objective(model, x[batch], y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


# Points, and how many times cheaper: limited by the share of points that nothing cheap decides,
# which is large for networks whose training had no bounds in it.
NETWORKS = {
    "cnn_small, PGD": (lambda: trained(cnn_small, adversarial(pgd(THREAT, steps=7)), 30), 150, 2),
    "cnn_small, IBP": (lambda: trained(cnn_small, certified(THREAT, kappa=(1, 0.5)), 60), 150, 10),
    "cnn_small, IBP alone": (lambda: trained(cnn_small, certified(THREAT), 60), 100, 5),
}


@pytest.mark.bench
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cascade_is_as_sharp_as_alpha_crown_and_cheaper(name):
    build, n, times = NETWORKS[name]
    model: nn.Module = build()
    x, y = (each[1200 : 1200 + n] for each in points())
    alone = LiRPA(THREAT, "alpha-CROWN")
    seconds = {"cascade": [], "alpha-CROWN": []}
    for _ in range(2):
        begun = time.monotonic()
        found = verify(model, x, y, proof_stages(THREAT), batch_size=n)
        seconds["cascade"].append(time.monotonic() - begun)
        begun = time.monotonic()
        wanted = alone(model, x, y)
        seconds["alpha-CROWN"].append(time.monotonic() - begun)
    cascade, all_points = (min(each) for each in seconds.values())
    missed = [
        i
        for i, (v, w) in enumerate(zip(found.verified, wanted.tolist(), strict=True))
        if w and not v
    ]
    print(f"\n{name}: {n} points\n{found}\nalpha-CROWN verifies {int(wanted.sum())}")
    print(
        f"missed {missed}; {cascade:.2f} s against {all_points:.1f} s: {all_points / cascade:.1f}x"
    )
    assert not missed
    assert all_points / cascade >= times
