"""Verdicts and time of the cascade of provers, against the library's alpha-CROWN on all points."""

import copy
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from robust_plugin import ThreatModel, adversarial, certified, pgd, verify
from robust_plugin.adapters.auto_lirpa import proof_methods
from robust_plugin.adapters.auto_lirpa.certifier import _library
from robust_plugin.adapters.auto_lirpa.shims import learning_at_the_ends, readable_trace
from robust_plugin.recipes.models.networks import cnn_small

auto_LiRPA = _library()  # adds what it needs and current torch no longer has
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


def library_alone(model, x, y):
    """Return which points the library's alpha-CROWN proves, called as in the library's examples."""
    options = {
        "conv_mode": "matrix",  # its default, patches, is unsound for some convolutions
        "sparse_features_alpha": False,  # release 0.3 fails without it on current torch
        "sparse_spec_alpha": False,
        "optimize_bound_args": {"iteration": 20, "lr_alpha": 0.5},
    }
    with readable_trace():
        module = auto_LiRPA.BoundedModule(model, x[:1], options)
    eye = torch.eye(10)
    proved = []
    for rows in torch.arange(len(x)).split(32):
        others = torch.arange(10).expand(len(rows), -1)
        others = others[others != y[rows, None]].view(len(rows), -1)
        ball = auto_LiRPA.PerturbationLpNorm(
            norm=np.inf,
            eps=THREAT.eps,
            x_L=(x[rows] - THREAT.eps).clamp(0, 1),
            x_U=(x[rows] + THREAT.eps).clamp(0, 1),
        )
        with learning_at_the_ends():  # without it, no slope is learned on current torch
            lower, _ = module.compute_bounds(
                x=(auto_LiRPA.BoundedTensor(x[rows], ball),),
                C=eye[y[rows]][:, None] - eye[others],
                method="CROWN-Optimized",
                bound_upper=False,
            )
        proved.append((lower > 0).all(1))
    return torch.cat(proved)


# Network, number of points, and how many times cheaper the cascade has to be. The factor is limited
# by the share of points that the cheap methods leave undecided, which is large for networks that
# were trained without bounds.
NETWORKS = {
    "cnn_small, PGD": (lambda: trained(cnn_small, adversarial(pgd(THREAT, steps=7)), 30), 150, 4),
    "cnn_small, IBP": (lambda: trained(cnn_small, certified(THREAT, kappa=(1, 0.5)), 60), 400, 20),
    "cnn_small, IBP alone": (lambda: trained(cnn_small, certified(THREAT), 60), 200, 10),
}


@pytest.mark.bench
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cascade_is_as_sharp_as_alpha_crown_and_cheaper(name):
    build, n, times = NETWORKS[name]
    model: nn.Module = build()
    x, y = (each[1200 : 1200 + n] for each in points())
    plain = copy.deepcopy(model)  # the library changes the model it is given
    seconds = {"cascade": [], "library": []}
    for _ in range(2):
        begun = time.process_time()
        found = verify(model, x, y, proof_methods(THREAT), batch_size=n)
        seconds["cascade"].append(time.process_time() - begun)
        begun = time.process_time()
        wanted = library_alone(plain, x, y)
        seconds["library"].append(time.process_time() - begun)
    cascade, alone = (min(each) for each in seconds.values())
    each = enumerate(zip(found.verified, wanted.tolist(), strict=True))
    missed = [i for i, (ours, theirs) in each if theirs and not ours]
    print(f"\n{name}: {n} points\n{found}\nthe library's alpha-CROWN proves {int(wanted.sum())}")
    print(f"missed {missed}; CPU {cascade:.2f} s against {alone:.1f} s: {alone / cascade:.1f}x")
    assert not missed
    assert alone / cascade >= times
