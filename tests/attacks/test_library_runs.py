"""Our runs of APGD, FAB and Square against the library's own loops, from the same noise."""

import contextlib
import logging

import pyautoattack
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_plugin import ThreatModel
from robust_plugin.attacks.apgd import apgd
from robust_plugin.attacks.fab import FabSettings, fab
from robust_plugin.attacks.losses import targeted_dlr_loss
from robust_plugin.attacks.square import square
from robust_plugin.attacks.survivors import AllFooled, Standing

BALLS = [("Linf", 0.06), ("L2", 0.5)]
POINTS = 24


class Spied(nn.Module):
    """A network that keeps what it is asked for."""

    def __init__(self, shape=(3, 12, 12)):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, padding=1), nn.ELU(), nn.Flatten(), nn.LazyLinear(6)
        )
        self.net(torch.zeros(1, *shape))
        self.requires_grad_(False)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)


@pytest.fixture
def double():
    """Double precision, for the library's own zeros and noise too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def setting():
    logging.getLogger("auto-attack").disabled = True
    model = Spied()
    x = torch.rand(POINTS, 3, 12, 12)
    x[:, :, ::5], x[:, :, ::7] = 0, 1
    return model, x, model(x).argmax(1)


def library(model, norm, eps):
    return pyautoattack.AutoAttack(model, norm=norm, eps=eps, version="standard", seed=0)


def asked(model, run):
    """The points that a run asks the network for, all of the batch at each call."""
    model.seen.clear()
    torch.manual_seed(7)
    with contextlib.suppress(AllFooled):
        run()
    return list(model.seen)


class Unfooled(Standing):
    """A batch in which every point stands whatever the logits, so that both runs keep all rows."""

    def keep(self, rows, points, logits):
        return None


def distances(ours, theirs):
    assert len(ours) == len(theirs)
    return torch.stack([(a - b).abs().amax() for a, b in zip(ours, theirs, strict=True)])


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


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_fab_finds_the_distances_of_the_library(norm, eps, setting):
    model, x, y = setting
    threat = ThreatModel(norm, eps)
    settings = FabSettings()
    order = model(x).sort(dim=1).indices
    for place in (2, 3):
        points = Standing(model, x, y, ThreatModel(norm, 0.0))  # nobody leaves the run
        found, nearest = fab(points, order[:, -place], settings)
        torch.testing.assert_close(threat.norms(nearest - x), found)
        assert bool((model(nearest).argmax(1) != y).all())
        of = library(model, norm, eps).fab
        of.target_class = place
        x_adv = of.attack_single_run(x, y, is_targeted=True)
        expected = threat.norms(x_adv - x)
        close = (found - expected).abs() <= 1e-3 * expected
        assert float(close.float().mean()) > 0.9 and bool((expected > 0).all())


@pytest.mark.parametrize(("norm", "eps"), BALLS)
@pytest.mark.parametrize("random_start", [False, True])
def test_untargeted_fab_finds_the_distances_of_the_library(norm, eps, random_start, setting):
    model, x, y = setting
    points = Standing(model, x, y, ThreatModel(norm, eps))
    points.keep = lambda *_: None
    torch.manual_seed(7)
    found, _ = fab(points, None, FabSettings(steps=20), random_start=random_start)
    of = library(model, norm, eps).fab
    of.n_iter = 20
    torch.manual_seed(7)
    x_adv = of.attack_single_run(x, y, use_rand_start=random_start)
    expected = points.threat.norms(x_adv - x)
    close = (found - expected).abs() <= 1e-3 * expected
    assert float(close.float().mean()) > 0.9 and bool((expected > 0).all())


@pytest.mark.parametrize(("norm", "eps"), BALLS)
@pytest.mark.parametrize("shape", [(3, 10, 10), (1, 8, 8), (1, 5, 9)])
def test_square_proposes_what_the_library_proposes(norm, eps, shape, double):
    logging.getLogger("auto-attack").disabled = True
    model = Spied(shape)
    x = torch.rand(POINTS, *shape)
    y = model(x).argmax(1)
    points = Standing(model, x, y, ThreatModel(norm, eps))
    ours = asked(model, lambda: square(points, queries=400, share=0.8))
    of = library(model, norm, eps).square
    of.n_queries = 400
    of.init_hyperparam(x)
    theirs = asked(model, lambda: of.attack_single_run(x, y))
    assert [len(a) for a in ours] == [len(b) for b in theirs]  # the same points leave, when
    assert float(distances(ours, theirs).amax()) < 1e-4  # roots of what is left of a radius
    assert len(ours[-1]) < POINTS  # some were fooled


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_points_on_the_edge_of_a_small_ball_are_inside(norm):
    """x + eps minus x is more than eps by rounding, and the library counts such points."""
    threat = ThreatModel(norm, "2/255")
    x = torch.rand(200, 3, 32, 32)
    away = torch.randn_like(x).sign() * threat.eps / (1 if norm == "Linf" else 3072**0.5)
    points = Standing(lambda x: torch.eye(2)[[0] * len(x)], x, torch.zeros(200).long(), threat)
    moved, wrong = x + away, torch.eye(2)[[1] * 200]
    if norm == "Linf":
        assert float(threat.norms(moved - x).max()) > threat.eps
    with pytest.raises(AllFooled):
        points.keep(points.rest(), moved, wrong)
    far = Standing(points.model, x, points.y, threat)
    assert far.keep(far.rest(), x + 1.01 * away, wrong) is not None and bool(far.robust.all())


def test_square_refuses_what_is_no_image(setting):
    model, _, _ = setting
    points = Standing(lambda x: x, torch.rand(4, 10), torch.zeros(4).long(), ThreatModel("L2", 1))
    points.robust[:] = True
    with pytest.raises(ValueError, match=r"\(4, 10\).*images"):
        square(points, queries=3, share=0.8)
