"""The HTML page of an evaluation."""

import re

import pytest
import torch

from robust_plugin import Report, ThreatModel, wilson_interval
from robust_plugin.recipes.evaluate.page import page


def test_the_page_of_an_evaluation_says_which_row_is_of_which_threat_model() -> None:
    small, large = ThreatModel("Linf", 0.1), ThreatModel("Linf", 0.1, low=-1.0)
    flags = {"clean": (True, True), "PGD-2": (True, False), "PGD-3": (False, False)}
    one = Report((0, 1), flags, threats={"PGD-2": small, "PGD-3": small})
    two = Report((0, 1), flags, threats={"PGD-2": small, "PGD-3": large})
    told = page(one, title="one", about="")
    assert "<td>PGD-2</td>" in told and "<td>PGD-3</td>" in told and "Settings" not in told
    told = page(two, title="two", about="", settings={"seed": 3})
    assert f"<td>PGD-2, {small}</td>" in told and f"<td>PGD-3, {large}</td>" in told
    assert "<td>clean</td>" in told and "seed: 3" in told


def test_every_row_has_its_accuracy_with_interval_and_n() -> None:
    threat = ThreatModel("Linf", 0.1)
    flags = {"clean": (True,) * 9 + (False,), "<PGD>": (True,) * 4 + (False,) * 6}
    report = Report((0, 1) * 5, flags, threats={"<PGD>": threat}, findings=("a & b",))
    html = page(report, title="mine", about="10 points")
    cells = re.findall(
        r"<tr><td>(.*?)</td><td>(.*?) %</td>\n<td>\[(.*?)\]</td><td>(\d+)</td>", html
    )
    low, high = (100 * end for end in wilson_interval(4, 10))
    assert [cell[0] for cell in cells] == ["clean", "&lt;PGD&gt;"]
    assert cells[1][1:] == ("40.0", f"{low:.1f}, {high:.1f}", "10")
    assert '<p class="fails">a &amp; b</p>' in html
    assert html.count("data:image/png;base64,") == 1  # by class; there is no curve, no example


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (2, 4, 4), (5,)])
def test_examples_are_shown_for_images_that_an_attack_fooled(shape: tuple[int, ...]) -> None:
    threat = ThreatModel("Linf", 0.1)
    images = {"inputs": torch.rand(3, *shape), "PGD": torch.rand(3, *shape)}

    def examples(robust: tuple[bool, ...]) -> bool:
        flags = {"clean": (True, True, False), "PGD": robust}
        report = Report((0, 1, 2), flags, threats={"PGD": threat})
        return "<h2>Examples</h2>" in page(report, title="", about="", images=images)

    assert examples((True, False, False)) == (len(shape) == 3 and shape[0] != 2)
    assert not examples((True, True, False))  # the third point was wrong before the attack
