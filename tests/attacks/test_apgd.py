"""APGD against the library's own loop, from the same noise."""

import pytest
from library_runs import BALLS, Unfooled, asked, distances, library
from torch.nn import functional as F

from robust_plugin import ThreatModel
from robust_plugin.attacks.apgd import apgd
from robust_plugin.attacks.losses import targeted_dlr_loss


@pytest.mark.parametrize(("norm", "eps"), BALLS)
@pytest.mark.parametrize("targeted", [False, True])
def test_apgd_asks_for_the_points_of_the_library(norm, eps, targeted, double, setting):
    # The sign of a gradient near zero decides where a run goes, hence the precision.
    model, x, y = setting
    points = Unfooled(model, x, y, ThreatModel(norm, eps))
    target = (y + 1) % 6

    def loss(logits, rows):
        if targeted:
            return targeted_dlr_loss(logits, y[rows], target[rows])
        return F.cross_entropy(logits, y[rows], reduction="none")

    ours = asked(model, lambda: apgd(points, loss, steps=100, rho=0.75))
    of = library(model, norm, eps)
    of = of.apgd_targeted if targeted else of.apgd
    of.y_target = target
    of.init_hyperparam(x)
    theirs = asked(model, lambda: of.attack_single_run(x, y))
    assert float(distances(ours, theirs).amax()) < 1e-8
