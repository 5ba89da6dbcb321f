"""A verification as a certifier: the union of its provers, by name, and in a report."""

import pytest
import torch
from torch import nn

from robust_plugin import IBP, Progress, Report, ThreatModel, Verifier, evaluate, pgd, verify

THREAT = ThreatModel("Linf", eps=0.004)


class Only:
    """Proves the points whose first pixel says so, and no others."""

    def __init__(self, threat, sign):
        self.threat, self.sign = threat, sign

    def margins(self, model, x, y):
        margin = self.sign * (x[:, 0, 0, 0] - 0.5)
        return margin[:, None].expand(-1, 10).scatter(1, y[:, None], 0.0)


@pytest.fixture
def sure(cnn, batch):
    """A network that is right and far from wrong, and its points."""
    model, (x, _) = cnn().eval(), batch
    return model, x, model(x).argmax(1)


def test_it_proves_what_any_prover_proves_and_names_them(sure):
    model, x, y = sure
    low, high = x[:, 0, 0, 0] < 0.5, x[:, 0, 0, 0] > 0.5
    both = Verifier({"high": Only(THREAT, 1), "low": Only(THREAT, -1)}, batch_size=5)
    assert both.name == "high + low" and both.threat == THREAT
    assert low.any() and high.any()
    assert torch.equal(Verifier({"high": Only(THREAT, 1)})(model, x, y), high)
    assert torch.equal(both(model, x, y), low | high)
    tiny = ThreatModel("Linf", eps=1e-5)
    methods = {"IBP": IBP(tiny), "PGD": pgd(tiny, steps=2)}
    report = evaluate(model, [(x, y)], attacks=[pgd(tiny, steps=3)], certifier=Verifier(methods))
    assert report.certifier == "IBP"
    assert report.certified == tuple(IBP(tiny)(model, x, y).tolist()) and any(report.certified)


def test_a_report_tells_who_proved_what_and_goes_on_from_a_journal(sure, tmp_path):
    model, x, y = sure
    y = y.clone()
    y[:3] = (y[:3] + 1) % 10
    methods = {"high": Only(THREAT, 1), "IBP": IBP(THREAT)}
    seen = []
    certifier = Verifier(methods, batch_size=4, journal=tmp_path, progress=seen.append)
    batches = list(zip(x.split(7), y.split(7), strict=True))
    report = evaluate(model, batches, certifier=certifier)
    assert report.verdicts is not None and report.verdicts[:3] == ("misclassified",) * 3
    rest = verify(model, x[3:], y[3:], methods)
    assert report.verdicts[3:] == rest.words
    assert report.certified == tuple("verified" in words for words in report.verdicts)
    high, low = (report.verdicts.count(f"verified by {who}") for who in ("high", "IBP"))
    assert high and low
    assert f"proofs: {high} verified by high, {low} verified by IBP, 3 miscl" in str(report)
    assert Report.from_json(report.to_json()) == report
    # All points in one call, whatever the loader's batches; then nothing is left to prove.
    n = len(x) - 3
    assert seen == [
        Progress("verify: high, IBP", done, n, "points") for done in [*range(0, n, 4), n]
    ]
    nothing = Verifier(methods, batch_size=4, journal=tmp_path)
    assert evaluate(model, [(x, y)], certifier=nothing) == report
    with pytest.raises(ValueError, match="journal of another evaluation: points"):
        evaluate(model, [(x, y)], certifier=nothing, limits={"certified": 9})


def test_a_point_that_is_wrong_is_not_proved(sure):
    model, x, y = sure
    wrong = (y + 1) % 10
    always = {"high": Only(THREAT, 1), "low": Only(THREAT, -1)}
    assert not Verifier(always)(model, x, wrong).any()


def test_an_attack_among_the_methods_guards_the_proofs(sure):
    model, x, y = sure
    wide = ThreatModel("Linf", eps=0.5)
    liars = {"high": Only(wide, 1), "low": Only(wide, -1), "PGD": pgd(wide, steps=20)}
    with pytest.raises(ValueError, match="the proof is wrong"):
        Verifier(liars)(model, x, y)


def test_bad_input():
    with pytest.raises(ValueError, match="none of them is a prover"):
        Verifier({"PGD": pgd(THREAT, steps=1)})
    with pytest.raises(ValueError, match="give provers and attacks of one threat model"):
        Verifier({"a": IBP(THREAT), "b": IBP(ThreatModel("Linf", eps=0.1))})
    with pytest.raises(ValueError, match="give provers and attacks of one threat model"):
        Verifier({})
    with pytest.raises(ValueError, match="batch_size is 0"):
        Verifier({"a": IBP(THREAT)}, batch_size=0)(nn.Flatten(), torch.rand(1, 2), torch.zeros(1))
