"""Square against the library's own loop, from the same noise."""

import logging

import pytest
import torch
from library_runs import BALLS, POINTS, Spied, asked, distances, library

from robust_plugin import ThreatModel
from robust_plugin.attacks.square import square
from robust_plugin.attacks.survivors import Survivors


@pytest.mark.parametrize(("norm", "eps"), BALLS)
@pytest.mark.parametrize("shape", [(3, 10, 10), (1, 8, 8), (1, 5, 9)])
def test_square_proposes_what_the_library_proposes(norm, eps, shape, double):
    logging.getLogger("auto-attack").disabled = True
    model = Spied(shape)
    x = torch.rand(POINTS, *shape)
    y = model(x).argmax(1)
    points = Survivors(model, x, y, ThreatModel(norm, eps))
    ours = asked(model, lambda: square(points, queries=400, share=0.8))
    of = library(model, norm, eps).square
    of.n_queries = 400
    of.init_hyperparam(x)
    theirs = asked(model, lambda: of.attack_single_run(x, y))
    assert [len(a) for a in ours] == [len(b) for b in theirs]  # the same points leave, when
    assert float(distances(ours, theirs).amax()) < 1e-4  # roots of what is left of a radius
    assert len(ours[-1]) < POINTS  # some were fooled


def test_square_refuses_what_is_no_image(setting):
    model, _, _ = setting
    points = Survivors(lambda x: x, torch.rand(4, 10), torch.zeros(4).long(), ThreatModel("L2", 1))
    points.robust[:] = True
    with pytest.raises(ValueError, match=r"\(4, 10\).*images"):
        square(points, queries=3, share=0.8)
