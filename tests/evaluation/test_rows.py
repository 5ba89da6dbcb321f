"""The rows of attacks and of the certifier."""

import pytest
import torch
from threshold import Certifier, Threshold, batches, down, up

from robust_plugin import (
    IBP,
    Report,
    ThreatModel,
    evaluate,
)
from robust_plugin.evaluation.rows import AttackRow, described


def test_a_certifier_stands_beside_the_attacks(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    report = evaluate(
        Threshold(), batches(x, y), attacks=[down(threat)], certifier=Certifier(threat)
    )
    assert report.certified is not None and 0 < report.accuracy("certified") < report.accuracy()
    right = (x[:, 0] > 0.5) == (y == 1)
    assert list(report.certified) == (right & ((x[:, 0] - 0.5).abs() > 0.1)).tolist()
    assert all(a >= b for a, b in zip(report.flags["down"], report.certified, strict=True))
    *_, row, proofs = str(report).splitlines()
    proved, wrong = sum(report.certified), int((~right).sum())
    assert row.startswith("certified ")
    assert proofs == (
        f"proofs: {proved} verified by Certifier, {wrong} misclassified, "
        f"{len(y) - proved - wrong} unknown"
    )
    assert "certified by Certifier" in str(report)
    assert Report.from_json(report.to_json()) == report
    some = evaluate(
        Threshold(), batches(x, y), certifier=Certifier(threat), limits={"certified": 7}
    )
    assert some.certified == report.certified[:7]


def test_an_attack_row_counts_fooled_points_and_their_distances(points):
    """The threshold is at .5, so an attack by -.1 moves a point over it or does not."""
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    model, value = Threshold().eval(), x[:, 0]
    right = (value > 0.5) == (y == 1)
    row = AttackRow.for_attack(down(threat), threat, keep=True)
    row.room = 60
    for rows in (slice(0, 40), slice(40, 90)):  # the second batch is cut off at 60 points
        row.run(model, x[rows], y[rows], right[rows])
    lower = (value - 0.1).clamp(0, 1)
    robust = right & ((lower > 0.5) == (y == 1))
    assert row.flags == robust[:60].tolist() and row.room == 0
    moved = (lower[:60] - value[:60]).abs().tolist()
    for distance, was_right, held, by in zip(
        row.distances, right.tolist(), row.flags, moved, strict=False
    ):
        wanted = 0.0 if not was_right else float("inf") if held else min(by, 0.1)
        assert distance == pytest.approx(wanted, abs=1e-6)
    images = torch.cat(row.images)
    assert torch.equal(images[~right[:60]], x[:60][~right[:60]])
    assert torch.equal(images[right[:60], 0], lower[:60][right[:60]])


def test_methods_are_described_the_same_in_every_process():
    threat = ThreatModel("Linf", eps=0.1)
    assert described(IBP(threat)) == repr(IBP(threat))
    assert described(up) == f"{up.__module__}.up" and " at 0x" in repr(up)
