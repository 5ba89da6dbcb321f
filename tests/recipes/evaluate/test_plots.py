"""The plots of an evaluation."""

import re

from sample_pages import CLASSES, report

from robust_plugin import Report
from robust_plugin.recipes.evaluate.plots import class_plot, curve_plot
from robust_plugin.recipes.pages.colors import PLAIN


def test_the_curve_is_drawn_with_every_attack_of_its_norm() -> None:
    full = report(50, 30, more=True)
    assert full.curve is not None
    svg = curve_plot(full, full.curve)
    names = re.findall(r">([^<>]+)</text>", svg)
    assert {"closest input that was found", "PGD-10", "FAB", "AutoAttack"} <= set(names)
    assert PLAIN in svg and "100" in names


def test_few_classes_are_all_shown_by_their_names() -> None:
    svg, shown = class_plot(report(50, 30), CLASSES)
    assert shown == 3 and all(
        f">{name}</text>" in svg for name in ("cat &lt;1&gt;", f"…{CLASSES[1][-21:]}", "dog")
    )


def test_of_many_classes_the_worst_are_shown() -> None:
    labels = tuple(i % 30 for i in range(300))
    robust = tuple(label < 10 for label in labels)  # classes 10 to 29 are fooled
    many = Report(labels, {"clean": (True,) * 300, "PGD": robust})
    svg, shown = class_plot(many, [f"name {label}" for label in range(30)])
    assert shown == 20
    assert set(re.findall(r">name (\d+)</text>", svg)) == {str(i) for i in range(10, 30)}
