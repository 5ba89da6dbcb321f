"""Pages in a real browser: wide and narrow, light and dark; and faults that it must find."""

from pathlib import Path

import pytest
from browser import check_page, faults_of, need_chromium
from sample_pages import comparison_html, evaluation_html


def test_the_page_of_a_comparison_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(comparison_html())
    check_page(tmp_path / "page.html")


def test_the_page_of_an_evaluation_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(evaluation_html())
    check_page(tmp_path / "page.html")


SVG = '<svg viewBox="0 0 300 40" style="width: 100%"><text x="{}" y="20"{}>word</text></svg>'
GOOD = f"<!doctype html><h1>one</h1><p>two</p>{SVG.format(2, '')}"
FAULTS = {
    "pixels wider than the window": '<div style="width: 1500px">wide</div>',
    "the id a is there twice": '<p id="a">x</p><p id="a">y</p>',
    "<img> broken is not there": '<img alt="broken" src="data:image/png;base64,AAAA">',
    "<svg>  has no size": '<svg width="0" height="0"></svg>',
    "request failed": '<img alt="lost" src="lost.png">',
    "script: ": "<script>nothing.at.all()</script>",
    "console: ": "<script>console.error('broken')</script>",
    "is cut off": SVG.format(290, ""),
    "<text> word lies on <text> over": '<svg viewBox="0 0 300 40" style="width: 100%">'
    '<text x="9" y="20">over</text><text x="12" y="22">word</text></svg>',
    "pixels high": SVG.format(2, ' style="font-size: 4px"'),
    "<p> pale has a contrast of 1.6": '<p style="color: #c8c8c8; background: white">pale</p>',
}


def test_a_good_page_has_no_fault_and_planted_ones_are_found(tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text(GOOD)
    assert faults_of(tmp_path / "good.html") == []
    (tmp_path / "bad.html").write_text(GOOD + "".join(FAULTS.values()))
    found = faults_of(tmp_path / "bad.html")
    assert [said for said in FAULTS if not any(said in fault for fault in found)] == []


def test_a_page_is_looked_at_narrow_and_dark_too(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<!doctype html><style>:root {color-scheme: light dark}</style>"
        '<p style="color: #121212">two</p><div style="width: 500px">wide</div>'
    )
    found = faults_of(tmp_path / "page.html")
    assert len([fault for fault in found if "there is no h1" in fault]) == 4
    wide = [fault for fault in found if "pixels wider" in fault]
    assert [fault.partition(":")[0] for fault in wide] == ["390 light", "390 dark"]
    pale = [fault for fault in found if "<p> two has a contrast" in fault]
    assert [fault.partition(":")[0] for fault in pale] == ["1200 dark", "390 dark"]


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail), ("", pytest.skip)])
def test_without_a_browser_tests_are_skipped_and_fail_in_ci(
    ci: str, outcome: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome.Exception, match="apt-get install chromium"):
        need_chromium()
