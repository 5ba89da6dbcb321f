"""Verdicts and what counts as a prover."""

from robust_plugin import IBP, ThreatModel, pgd
from robust_plugin.certificates.contract import (
    FALSIFIED,
    MISCLASSIFIED,
    UNKNOWN,
    VERDICTS,
    VERIFIED,
    Prover,
    counted,
)

THREAT = ThreatModel("Linf", eps=0.1)


def test_codes_are_places_in_the_list_of_verdicts():
    codes = {
        "verified": VERIFIED,
        "falsified": FALSIFIED,
        "misclassified": MISCLASSIFIED,
        "unknown": UNKNOWN,
    }
    assert {verdict: VERDICTS[code] for verdict, code in codes.items()} == {v: v for v in codes}


def test_counts_come_in_the_order_of_the_verdicts_and_miss_no_point():
    words = ["unknown", "falsified by PGD", "verified by CROWN", "unknown", "misclassified"]
    words += ["verified by IBP", "verified by CROWN"]
    found = counted(words)
    assert found == {word: words.count(word) for word in words}
    assert list(found) == [
        "verified by CROWN",
        "verified by IBP",
        "falsified by PGD",
        "misclassified",
        "unknown",
    ]


def test_a_prover_has_margins_and_a_threat_model():
    assert isinstance(IBP(THREAT), Prover)
    assert not isinstance(pgd(THREAT), Prover)
    assert not isinstance(lambda model, x, y: x, Prover)
