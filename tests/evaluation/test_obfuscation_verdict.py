"""The verdict on obfuscated gradients, from given results of the checks."""

from robust_plugin.evaluation.obfuscation_verdict import Check, Obfuscation

HOLDS, FAILS = Check("a holds", True, "1 of 2"), Check("b holds", False, "2 of 2")
NOT_RUN = Check("c holds", None, "no images")


def test_a_failed_check_is_named_and_one_that_did_not_run_is_not():
    found = Obfuscation((HOLDS, FAILS, NOT_RUN), 60)
    assert found.failed == (FAILS,)
    assert found.verdict.endswith("do not hold: b holds")
    assert str(found).splitlines() == [
        "holds   a holds: 1 of 2",
        "FAILS   b holds: 2 of 2",
        "not run c holds: no images",
        found.verdict,
    ]


def test_without_a_failed_check_the_verdict_counts_those_that_ran():
    said = Obfuscation((HOLDS, NOT_RUN, HOLDS), 50).verdict
    assert said == "no sign of obfuscated gradients in 2 checks on 50 points"


def test_fewer_than_fifty_points_give_no_verdict_whatever_the_checks_say():
    for checks, names in (((HOLDS,), ""), ((HOLDS, FAILS), " (on these do not hold: b holds)")):
        said = Obfuscation(checks, 49).verdict
        assert said.startswith("too few points for a verdict") and said.endswith(f"takes 50{names}")
