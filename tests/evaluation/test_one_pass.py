"""The pass over the loader's batches."""

import pytest
import torch
from threshold import Threshold, batches
from torch import nn

from robust_plugin import (
    ThreatModel,
    evaluate,
    pgd,
)


def test_attacks_see_only_points_that_are_right_clean(points):
    x, y = points
    threat, seen = ThreatModel("Linf", eps=0.1), []

    def look(model, x, y):
        assert not model.training and torch.is_grad_enabled()
        seen.append(len(x))
        assert bool((model(x).argmax(1) == y).all())
        return x

    report = evaluate(Threshold(), batches(x, y), attacks=[look], threat=threat)
    assert sum(seen) == sum(report.flags["clean"])
    assert report.flags["look"] == report.flags["clean"]


def test_a_model_that_is_random_in_evaluation_mode_is_refused(batch):
    class Noisy(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.linear, self.p = nn.Linear(64, 10), p

        def forward(self, x):
            return self.linear(nn.functional.dropout(x.flatten(1), self.p, training=True))

    with pytest.raises(ValueError, match="different logits for the same input in evaluation mode"):
        evaluate(Noisy(0.5), [batch])
    evaluate(Noisy(0.0), [batch])


def test_bad_batches_are_named(cnn, batch):
    x, y = batch
    model = cnn()
    for bad, error, says in (
        ((x, y, y), TypeError, "legal: batches"),
        (x, TypeError, "the loader gives a Tensor"),
        (((255 * x).byte(), y), ValueError, "inputs are torch.uint8"),
        ((x[:0], y[:0]), ValueError, "at least one point"),
    ):
        with pytest.raises(error, match=says):
            evaluate(model, [bad])
    with pytest.raises(TypeError, match="give a list of attacks"):
        evaluate(model, [batch], attacks=pgd(ThreatModel("Linf", 0.1)))
