"""The page of a run: its figures, what it leaves out, and how it looks in a browser."""

import re
from dataclasses import replace
from pathlib import Path

from browser import check_page
from sample_pages import LONG
from sample_run import run_facts

from robust_plugin.recipes.pages.run_facts import UnderAttack
from robust_plugin.recipes.pages.run_page import run_page


def test_the_page_has_no_fault(tmp_path: Path) -> None:
    html = run_page(run_facts())
    (tmp_path / "page.html").write_text(html)
    check_page(tmp_path / "page.html")
    assert run_page(run_facts()) == html  # the same facts give the same page


def cells(html: str, name: str) -> list[str]:
    """The text of the first row of a table with this name, without tags."""
    row = re.search(rf"<tr[^>]*><td>{re.escape(name)}</td>(.*?)</tr>", html, re.S)
    assert row is not None, name
    return [
        " ".join(re.sub(r"<[^>]*>", " ", cell).split())
        for cell in re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.S)
    ]


def test_the_dense_network_stands_beside_the_pruned_one() -> None:
    facts = run_facts()
    html = run_page(facts)
    assert facts.dense is not None
    low, high = (100 * end for end in facts.dense.report.interval("PGD-10"))
    dense, pruned, change = cells(html, "PGD-10")
    assert dense == f"50.0 % {low:.1f} to {high:.1f}" and pruned.startswith("66.7 % ")
    assert change.startswith("+16.7 ")
    assert cells(html, "parameters") == ["90,000", "9,000", "to 10 %"]
    assert cells(html, "multiply-adds") == ["500,000", "60,000", "to 12 %"]
    assert cells(html, "file, kB") == ["360.0", "40.0", "to 11.1 %"]
    assert cells(html, "ms for 64 images") == ["1.5", "1.4", "to 93.3 %"]
    assert "Pruned is better than dense under PGD-10" in html and "trained 4 epochs longer" in html
    assert "Zeros in dense layers save no time" in html


def test_everything_else_is_there_and_escaped() -> None:
    html = run_page(run_facts())
    assert "<h1>harp: package.module:net &lt;1&gt; on own images</h1>" in html
    assert "The stage prune &lt;failed&gt;." in html and "<failed>" not in html
    assert "<b>50 %</b> 216 of 432" in html and "<b>2 %</b> 20 of 1,000" in html
    assert f"<b>{LONG}</b>: 300 outputs" in html
    assert "1 that PGD-10 has fooled, and 1 that" in html
    assert "radius  certified" in html and "seed: 3" in html and "torch 2.9" in html
    assert html.count("<dt>clean accuracy</dt>") == 1  # said once, above the first table
    assert "<dt>certified accuracy" in html


def test_the_security_curves_are_below_their_heading_with_what_looks_wrong() -> None:
    html = run_page(run_facts())
    section = html.partition("<h2>Robust accuracy against the radius</h2>")[2].partition("<h2>")[0]
    assert section.count("<svg") == 1 and "first 60 test points that PGD-10" in section
    # of the pruned network 5 of 52 points stand in the whole box, of the dense one none of 50
    assert section.count('class="fails"') == 1
    assert "The accuracy of harp does not fall to nothing" in section
    assert "PGD-10 leaves 5 of 52 points" in section


def test_small_networks_without_channels_do_compute_less() -> None:
    html = run_page(replace(run_facts(), structure="channels", budget="channels"))
    assert "Zeros in dense layers" not in html and "really computes less" in html
    assert "to a budget of 10 % of the channels" in html and "budget of multiply-adds" in html


def test_what_is_not_known_is_left_out() -> None:
    bare = replace(
        run_facts(), dense=None, pruned=None, comparisons=(), curves={}, epochs=(), masks=(),
        examples=(), attacked=None, findings=(), smoothing="",
    )  # fmt: skip
    html = run_page(bare)
    heads = re.findall("<h2>(.*?)</h2>", html)
    assert heads == [
        "The pruned network on the test points",
        "What each layer keeps",
        "Settings",
        "How this page was made",
    ]


def test_many_classes_have_a_table_of_the_largest_confusions() -> None:
    many = UnderAttack("PGD-10", (0, 1, 24), (0, 1, 24), (3, 3, 24))
    names = tuple(f"class {i}" for i in range(25))
    html = run_page(replace(run_facts(), attacked=many, class_names=names))
    assert cells(html, "class 1") == ["class 3", "1", "100 %"]
