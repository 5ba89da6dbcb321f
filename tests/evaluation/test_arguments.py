"""Attacks, certifiers and limits that evaluate is given."""

import pytest
from threshold import Certifier, Threshold, batches, down, up

from robust_plugin import (
    ThreatModel,
    evaluate,
    pgd,
)
from robust_plugin.evaluation.arguments import rows_of


def test_limits(points):
    x, y = points
    threat, seen = ThreatModel("Linf", eps=0.1), []
    counting = lambda model, x, y: seen.append(len(x)) or x  # noqa: E731
    counting.name = "few"
    report = evaluate(
        Threshold(),
        batches(x, y),
        attacks=[down(threat), counting],
        threat=threat,
        limits={"few": 40},
    )
    assert len(report.flags["few"]) == 40 and len(report.flags["down"]) == 90
    assert report.flags["few"] == report.flags["clean"][:40]
    assert sum(seen) == sum(report.flags["clean"][:40])
    assert len(report.worst) == 40 and "n=40" in str(report) and "n=90" in str(report)
    with pytest.raises(ValueError, match="limits name .'many'.; the rows are .'few'."):
        evaluate(Threshold(), batches(x, y), attacks=[counting], threat=threat, limits={"many": 1})


def test_attacks_by_names_of_ones_own(points):
    x, y = points
    balls = {f"down, {eps}": pgd(ThreatModel("Linf", eps), steps=2) for eps in (0.05, 0.1)}
    report = evaluate(Threshold(), batches(x, y), attacks=balls)
    assert report.rows == ("clean", "down, 0.05", "down, 0.1")
    assert [report.threats[row].eps for row in balls] == [0.05, 0.1]
    with pytest.raises(ValueError, match="called 'PGD-2'; give attacks={name: attack}"):
        evaluate(Threshold(), batches(x, y), attacks=list(balls.values()))
    with pytest.raises(ValueError, match="two rows would be called 'clean'"):
        evaluate(Threshold(), batches(x, y), attacks={"clean": pgd(ThreatModel("Linf", 0.1))})


def test_rows_have_their_threat_models_limits_and_names():
    own, other = ThreatModel("Linf", eps=0.1), ThreatModel("L2", eps=0.5)
    rows = rows_of([down(own), up], Certifier(own), other, {"up": 5}, keep=False)
    assert list(rows) == ["down", "up", "certified"]
    assert [row.threat for row in rows.values()] == [own, other, own]
    assert [row.room for row in rows.values()] == [float("inf"), 5, float("inf")]
    assert rows_of([], None, None, {}, keep=True) == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attacks": up}, "give a list of attacks"),
        ({"attacks": [ThreatModel]}, "ThreatModel is a class, and no attack; give attacks"),
        ({"attacks": [lambda x, y: x]}, "cannot be called as attack"),
        ({"certifier": "IBP"}, "give a callable, such as IBP"),
        ({"limits": ["up"]}, "give a dict of points by the row's name"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(given, says):
    arguments = {"attacks": [], "certifier": None, "limits": {}, **given}
    with pytest.raises(TypeError, match=says):
        rows_of(**arguments, threat=ThreatModel("Linf", eps=0.1), keep=False)
