"""The page of a run is written at its end, and a fault in it never loses the run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import check_page

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.evaluate.run_report import page_or_reason, write_page
from robust_plugin.recipes.papers.registry import finished_run, recipe_of

Words = Callable[..., list[str]]


@pytest.mark.usefixtures("pages", "at_workplace")
@pytest.mark.filterwarnings("ignore:the rates ended at")
@pytest.mark.parametrize(
    "more", [(), ("--structure=channels", "--budget=channels", "--density=0.5")]
)
def test_a_run_ends_with_a_page(
    more: tuple[str, ...], tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words("harp", tmp_path / "out", *more)
    assert main(line) == 0
    page = tmp_path / "out" / "report.html"
    printed = capsys.readouterr().out
    assert f"the page of this run: {page}\n" in printed and "  report.html  " in printed
    check_page(page)
    html = page.read_text()
    assert "<h1>harp: tiny_networks:net on images</h1>" in html
    assert f"robust-plugin harp --out={tmp_path / 'out'}" in html
    assert ("really computes less" in html) == bool(more)
    # the same command again makes the page from the files of the folder
    page.unlink()
    assert main(line) == 0 and page.read_text() == html
    if more:  # ... and the command channels measures the latency again
        capsys.readouterr()
        assert main(["channels", str(tmp_path / "out")]) == 0
        assert "the page of this run" in capsys.readouterr().out and page.read_text() != html


@pytest.mark.usefixtures("pages", "at_workplace")
def test_a_fault_in_the_page_does_not_lose_the_run(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "report.html" / "in the way").mkdir(parents=True)
    assert main(words("magnitude", tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "report.html was not written (" in printed and "report.json has the results." in printed
    assert json.loads((tmp_path / "out" / "report.json").read_text())["report"]["clean_acc"] > 0


@pytest.mark.usefixtures("at_workplace")
def test_a_training_that_has_learned_nothing_is_said(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    still = [f"--{stage}.lr=1e-9" for stage in ("pretrain", "prune", "finetune")]
    assert main(words("hydra", tmp_path / "out", *still)) == 0
    findings = json.loads((tmp_path / "out" / "report.json").read_text())["findings"]
    assert any("The stage pretrain ended" in found and "nothing" in found for found in findings)
    printed = capsys.readouterr().out
    assert all(f"\nfinding: {found}\n" in printed for found in findings)


def test_a_page_without_a_command_line_has_the_one_that_continues(run: Path) -> None:
    finished = finished_run(run)
    assert recipe_of(finished) == "hydra"
    assert write_page(finished, method="hydra") == run / "report.html"
    assert f"robust-plugin hydra --out {run}" in (run / "report.html").read_text()
    (run / "report.json").rename(run / "away.json")
    try:
        said = page_or_reason(finished, method="hydra")
    finally:
        (run / "away.json").rename(run / "report.json")
    assert said.startswith("report.html was not written (FileNotFoundError: ")
