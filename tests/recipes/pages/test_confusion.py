"""Which classes are taken for which."""

import random
import re

import pytest
from sklearn.metrics import confusion_matrix as reference

from robust_plugin.recipes.pages.confusion import (
    MATRIX_CLASSES,
    confusion_matrix,
    confusion_of,
    largest_confusions,
)
from robust_plugin.recipes.pages.run_facts import UnderAttack

NAMES = ["cat", "dog", "<owl>", "ant"]


def drawn(classes: int, n: int = 200) -> tuple[list[int], list[int]]:
    random.seed(0)
    return [random.choices(range(classes), k=n) for _ in range(2)]  # type: ignore[return-value]


def test_a_matrix_has_the_shares_of_each_row_in_per_cent() -> None:
    labels, predictions = drawn(4)
    svg = confusion_matrix(labels, predictions, NAMES, title="matrix", color="#4983fc")
    shares = reference(labels, predictions, normalize="true")
    expected = sorted(f"{100 * share:.0f}" for share in shares.flatten() if share)
    assert sorted(re.findall(r">(\d+)</text>", svg)) == expected
    opacities = {float(each) for each in re.findall(r"opacity: ([\d.]+)", svg)}
    assert max(opacities) == pytest.approx(0.08 + 0.6 * shares.max(), abs=1e-4)
    assert all(f">{name}</text>" in svg for name in ("cat", "dog", "&lt;owl&gt;"))


def test_the_largest_confusions_come_first_with_their_share_of_the_class() -> None:
    labels, predictions = [0] * 5 + [1] * 4 + [2], [1, 1, 1, 2, 0, 0, 0, 1, 1, 2]
    assert largest_confusions(labels, predictions, NAMES) == [
        ["cat", "dog", "3", "60 %"],
        ["dog", "cat", "2", "50 %"],
        ["cat", "<owl>", "1", "20 %"],
    ]
    labels, predictions = drawn(30, 3000)
    counts = reference(labels, predictions)
    off = sorted((counts[i, j] for i in range(30) for j in range(30) if i != j), reverse=True)
    found = largest_confusions(labels, predictions, [str(i) for i in range(30)])
    assert [int(row[2]) for row in found] == off[:12]


def test_many_classes_get_a_table_and_few_get_matrices() -> None:
    labels, predictions = drawn(3)
    clean = tuple(labels)
    attacked = UnderAttack("PGD-10", clean, clean, tuple(predictions))
    few = confusion_of(attacked, NAMES, "#4983fc")
    assert [what for _, what in few.matrices] == ["without an attack", "under PGD-10"]
    assert few.lines == [] and few.points == 200
    assert few.matrices[0][0].count(">100</text>") == 3  # all on the diagonal
    many = confusion_of(attacked, [str(i) for i in range(MATRIX_CLASSES + 1)], "#4983fc")
    assert many.matrices == () and len(many.lines) == 6
