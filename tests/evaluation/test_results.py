"""Figures of a report, and comparisons of two."""

import pytest
import torch
from threshold import Certifier, Threshold, batches, down

from robust_plugin import (
    ThreatModel,
    evaluate,
    mcnemar,
    pgd,
)


def test_compare_is_mcnemar_on_the_same_points(cnn, batch, threat):
    x, y = batch
    models = [cnn(seed).eval() for seed in (0, 1)]
    y = models[0](x).argmax(1)
    reports = [evaluate(m, [(x, y)], attacks=[pgd(threat, steps=2)]) for m in models]
    for row in ("clean", "PGD-2", "worst case"):
        a, b = (r.worst if row == "worst case" else r.flags[row] for r in reports)
        found = reports[0].compare(reports[1], row)
        assert found.p == mcnemar(a, b)
        assert (found.accuracy, found.other_accuracy) == tuple(r.accuracy(row) for r in reports)
        assert found.difference == pytest.approx((sum(a) - sum(b)) / len(a))
        assert found.n11 == sum(i and j for i, j in zip(a, b, strict=True))
    assert reports[0].compare(reports[1]).better == "this network"
    assert reports[1].compare(reports[0], name="one", other_name="two").better == "two"
    with pytest.raises(ValueError, match="not of the same test points"):
        reports[0].compare(evaluate(models[0], [(x, 1 - y.clamp(0, 1))]))
    with pytest.raises(ValueError, match="row is 'APGD'; legal: .'clean', 'PGD-2', 'worst case'."):
        reports[0].accuracy("APGD")


def test_reports_of_other_points_or_threats_are_not_compared(cnn, batch):
    x, y = batch
    model = cnn().eval()
    linf = evaluate(model, [batch], attacks=[pgd(ThreatModel("Linf", 0.1), steps=1)])
    l2 = evaluate(model, [batch], attacks=[pgd(ThreatModel("L2", 0.1), steps=1)])
    flipped = evaluate(model, [(x.flip(-1), y)], attacks=[pgd(ThreatModel("Linf", 0.1), steps=1)])
    assert linf.compare(l2).p == 1
    with pytest.raises(ValueError, match="is of Linf eps=0.1, the other's of L2 eps=0.1"):
        linf.compare(l2, "PGD-1")
    with pytest.raises(ValueError, match="not of the same test points"):
        linf.compare(flipped)
    with pytest.raises(TypeError, match="give a Report"):
        linf.compare(None)


def test_a_wrong_certificate_raises(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    both = [down(threat), pgd(threat, steps=5)]
    with pytest.raises(ValueError, match=r"point \d+ is certified in Linf eps=0.1 and .* fools it"):
        evaluate(Threshold(), batches(x, y), attacks=both, certifier=Certifier(threat, slack=0.09))
    larger = Certifier(ThreatModel("Linf", eps=0.2), slack=0.19)
    with pytest.raises(ValueError, match="certified in Linf eps=0.2 and .* fools it in Linf eps=0"):
        evaluate(Threshold(), batches(x, y), attacks=both, certifier=larger)
    # Beyond the certified ball it is no contradiction.
    smaller = Certifier(ThreatModel("Linf", eps=0.01))
    evaluate(Threshold(), batches(x, y), attacks=both, certifier=smaller)
    for wrong in (lambda m, x, y: x, lambda m, x, y: torch.tensor(True), lambda m, x, y: True):
        with pytest.raises(TypeError, match="a bool tensor, one per point"):
            evaluate(Threshold(), batches(x, y), certifier=wrong, threat=threat)
    with pytest.raises(ValueError, match="certifier says no threat model"):
        evaluate(Threshold(), batches(x, y), certifier=lambda m, x, y: x[:, 0] > 0)


def test_reports_are_of_the_same_points_whatever_the_batches(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    one, two = (
        evaluate(Threshold(), batch, attacks=[down(threat)]) for batch in ([(x, y)], batches(x, y))
    )
    assert one.compare(two, "down").p == 1.0
    # A row is compared with its like, whatever else a report holds.
    more = evaluate(Threshold(), [(x, y)], attacks=[down(threat), pgd(ThreatModel("L2", 0.2))])
    assert one.compare(more, "down").p == 1.0
    with pytest.raises(ValueError, match="worst case is of"):
        one.compare(more, "worst case")


def test_of_rows_of_different_length_the_first_points_are_compared(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    long, short = (
        evaluate(Threshold(), [(x, y)], attacks=[down(threat)], limits=limits)
        for limits in ({}, {"down": 20})
    )
    found = long.compare(short, "down")
    assert found.n == 20 and found.n11 == sum(short.flags["down"])
    assert found == long.first(20).compare(short.first(20), "down")
    with pytest.raises(ValueError, match="not of the same test points"):
        long.compare(short.first(20))
