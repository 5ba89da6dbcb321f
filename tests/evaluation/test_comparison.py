"""Which of two networks is better, in words and figures."""

import pytest

from robust_plugin import Comparison, mcnemar
from robust_plugin.stats import paired_interval

COUNTS = {"n11": 70, "n10": 12, "n01": 2, "n00": 16}


def test_figures_are_those_of_the_two_by_two_table():
    found = Comparison("PGD-10", "pruned", "dense", **COUNTS)
    first = [True] * 82 + [False] * 18
    second = [True] * 70 + [False] * 12 + [True] * 2 + [False] * 16
    assert (found.n, found.accuracy, found.other_accuracy) == (100, 0.82, 0.72)
    assert found.difference == pytest.approx(0.1) and found.p == mcnemar(first, second)
    assert found.interval == paired_interval(12, 2, 100) and found.better == "pruned"
    assert repr(found) == (
        "Comparison(PGD-10: pruned - dense = +10.0 points [+3.1, +18.2], p=0.013, n=100)"
    )


def test_the_sentence_names_the_better_network_first_whichever_it_is():
    said = (
        "{} is better than {} under PGD-10: 82.0 % against 72.0 % of 100 points, +10.0 points, "
        "95 % interval [+3.1, +18.2], McNemar's exact p = 0.013 (only {} is right at 12, only {} "
        "at 2)"
    )
    names = ("pruned", "dense")
    assert str(Comparison("PGD-10", *names, **COUNTS)) == said.format(*names, *names)
    turned = {**COUNTS, "n10": 2, "n01": 12}
    found = Comparison("PGD-10", *names, **turned)
    assert str(found) == said.format(*names[::-1], *names[::-1])
    assert found.better == "dense" and found.difference == pytest.approx(-0.1)


def test_a_difference_that_may_be_chance_is_no_better_network():
    found = Comparison("certified", "one", "two", 70, 8, 2, 20)
    assert found.p == pytest.approx(0.109375) and found.better is None
    assert str(found).startswith("no clear difference between one and two in proofs: 78.0 %")
    equal = Comparison("clean", "one", "two", 5, 1, 1, 0)
    assert equal.better is None and "on clean inputs: 85.7 % against 85.7 %" in str(equal)


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        (12, "; pruned was trained 12 epochs longer than dense"),
        (-1, "; dense was trained 1 epoch longer than pruned"),
        (0, "at 2)"),
    ],
)
def test_the_network_that_was_trained_longer_is_named(epochs, said):
    for counts in (COUNTS, {**COUNTS, "n10": 2, "n01": 12}):
        found = Comparison("worst case", "pruned", "dense", **counts, extra_epochs=epochs)
        assert str(found).endswith(said) and " in the worst case: " in str(found)


def test_bad_input():
    with pytest.raises(ValueError, match="both networks are called 'a'"):
        Comparison("clean", "a", "a", 1, 1, 1, 1)
    for wrong in ((0, 0, 0, 0), (1, -1, 1, 1)):
        with pytest.raises(ValueError, match="legal: 0 or more"):
            Comparison("clean", "a", "b", *wrong)
