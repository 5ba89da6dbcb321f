"""The HTML page of an evaluation."""

import re

from sample_pages import CLASSES, attacked, evaluation_html, examples

from robust_plugin import Report, ThreatModel, wilson_interval
from robust_plugin.recipes.evaluate.network_facts import NetworkFacts
from robust_plugin.recipes.evaluate.page import page


def test_the_page_of_an_evaluation_says_which_row_is_of_which_threat_model() -> None:
    small, large = ThreatModel("Linf", 0.1), ThreatModel("Linf", 0.1, low=-1.0)
    flags = {"clean": (True, True), "PGD-2": (True, False), "PGD-3": (False, False)}
    one = Report((0, 1), flags, threats={"PGD-2": small, "PGD-3": small})
    two = Report((0, 1), flags, threats={"PGD-2": small, "PGD-3": large})
    told = page(one, title="one", about="")
    assert ">PGD-2</span></td>" in told and ">PGD-3</span></td>" in told and "Settings" not in told
    told = page(two, title="two", about="", settings={"seed": 3})
    assert f">PGD-2, {small}</span></td>" in told and f">PGD-3, {large}</span></td>" in told
    assert ">clean accuracy</span></td>" in told and "seed: 3" in told


def test_every_row_has_its_accuracy_with_interval_and_n() -> None:
    threat = ThreatModel("Linf", 0.1)
    flags = {"clean": (True,) * 9 + (False,), "<PGD>": (True,) * 4 + (False,) * 6}
    report = Report((0, 1) * 5, flags, threats={"<PGD>": threat}, findings=("a & b",))
    html = page(report, title="mine", about="10 points")
    cells = re.findall(
        r'</i>([^<]*)</span></td><td>(.*?) %\n<span class="ends">(.*?)</span>.*?<td>(\d+)</td>',
        html,
        re.S,
    )
    low, high = (100 * end for end in wilson_interval(4, 10))
    assert [cell[0] for cell in cells] == ["clean accuracy", "&lt;PGD&gt;"]
    assert cells[1][1:] == ("40.0", f"{low:.1f} to {high:.1f}", "10")
    # the interval is drawn from its lower end on, as wide as it is
    assert f'<i style="left: {low:.1f}%; width: {high - low:.1f}%">' in html
    assert '<p class="fails">a &amp; b</p>' in html
    assert html.count("<svg") == 1  # by class; there is no curve, no example


def test_the_page_has_every_part_and_needs_nothing_beside_it() -> None:
    html = evaluation_html()
    assert not re.search(r"(src|href)=\"(?!data:|#)", html) and "<script" not in html
    assert "net &lt;1&gt;" in html and "<1>" not in html and "&lt;strange&gt;" in html
    assert html.count("<svg") == 4  # curve, classes, two matrices
    assert html.count('src="data:image/png;base64,') == 2 * 3  # clean, attacked, change
    assert "50 of 1,000" in html and "robust-plugin evaluate runs/one" in html
    assert "torch 2.9, pyautoattack 0.2" in html and "seed: 3" in html
    for result in ("holds", "fails", "not run"):
        assert re.search(rf'<td class="left[^"]*">{result}</td>', html)


def test_a_fooled_point_shows_what_it_is_taken_for() -> None:
    report = Report((0, 1, 2), {"clean": (True,) * 3, "PGD-10": (False, True, True)})
    network = NetworkFacts(None, attacked(), examples(), CLASSES)
    html = page(report, title="", about="", network=network)
    assert "<br>clean: <span>cat &lt;1&gt;, 90 %</span>" in html
    assert '<br>attacked: <span class="fails">dog, 60 %</span>' in html
    assert "<h2>Examples</h2>" not in page(report, title="", about="")
