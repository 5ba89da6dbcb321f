"""The evaluation at the end of a run, and its report."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from printed import saved
from small_recipe import CERTIFIED

from robust_plugin import ThreatModel
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.schema import EvaluationConfig
from robust_plugin.recipes.evaluate import end_of_run
from robust_plugin.recipes.evaluate.end_of_run import check_evaluation, evaluate_run
from robust_plugin.recipes.evaluate.network import evaluate_network
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.papers.registry import finished_run
from robust_plugin.runtime.journal import Journal

RunTiny = Callable[..., dict[str, Any]]
Words = Callable[..., list[str]]


def test_a_run_folder_gives_the_figures_of_its_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--attacks", "pgd", "--out", str(tmp_path / "a.json")]) == 0
    report = Report.from_json(json.dumps(json.loads((run / "report.json").read_text())["report"]))
    again = saved(tmp_path / "a.json")
    assert again.rows == ("clean", "PGD-3x2")
    assert again.labels == report.labels and again.threat == report.threat
    assert all(again.flags[row] == report.flags[row] for row in again.rows)
    assert 0.3 < again.accuracy("PGD-3x2") < again.accuracy() <= 1  # not all equal
    out = capsys.readouterr().out
    assert out.startswith(str(again)) and "obfuscated gradients" in out


def test_autoattack_on_the_first_points_gives_the_reports_verdicts(run: Path) -> None:
    settings = of_run(run)
    report = evaluate_network(
        EvaluateConfig(**{**vars(settings), "attacks": ("autoattack",), "n": 8})
    ).report
    content = json.loads((run / "report.json").read_text())["report"]
    assert content["n"] == {"clean": 32, "PGD-3x2": 32, "AutoAttack": 8}
    assert "".join("01"[f] for f in report.flags["AutoAttack"]) == content["flags"]["AutoAttack"]
    assert report.n == 8


def test_a_runs_report_keeps_the_settings_and_the_versions(run: Path) -> None:
    content = json.loads((run / "report.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert {"recipe": "HydraConfig", **content["settings"]} == config
    assert content["versions"]["torch"] == torch.__version__


def test_a_report_of_the_same_settings_is_returned_without_another_evaluation(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Report:
        raise AssertionError("measured again")

    monkeypatch.setattr(end_of_run, "measure", never)
    before = (run / "report.json").read_bytes()
    finished = finished_run(run)
    finished.identity = json.loads(before)["identity"]
    del finished.identity["evaluation"]  # what ``evaluate_run`` adds
    report = evaluate_run(finished, finished.fresh_model())
    assert report == Report.from_json(json.dumps(json.loads(before)["report"]))
    assert (run / "report.json").read_bytes() == before
    finished.identity["data"] = "another"
    with pytest.raises(AssertionError, match="measured again"):
        evaluate_run(finished, finished.fresh_model())


@pytest.mark.parametrize(
    ("settings", "classes", "message"),
    [
        ({"autoattack": 8}, 3, "the model has 3 classes; AutoAttack's DLR loss needs 4"),
        ({"verify": 8, "certify": "cascade"}, 4, "takes Linf"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    settings: dict[str, Any], classes: int, message: str, run: Path
) -> None:
    finished = finished_run(run)
    check_evaluation(finished)
    finished.data = dataclasses.replace(finished.data, classes=classes)
    finished.threat = ThreatModel("L2", 0.5)
    evaluation = EvaluationConfig(**{"autoattack": 0, **settings})
    finished.config = dataclasses.replace(finished.config, evaluation=evaluation)
    with pytest.raises(ValueError, match=message):
        check_evaluation(finished)


def test_the_report_has_the_proofs_of_the_first_points(tmp_path: Path, run_tiny: RunTiny) -> None:
    options = ("--evaluation.verify=20", "--threat.eps=0.001", *CERTIFIED)
    report = run_tiny("hydra", tmp_path / "out", *options)["report"]["report"]
    assert report["certifier"] == "IBP + CROWN + alpha-CROWN-fixed + alpha-CROWN"
    assert len(report["certified"]) == 20 and "1" in report["certified"]
    proved = [words.startswith("verified by ") for words in report["verdicts"]]
    assert report["certified"] == "".join("01"[each] for each in proved)
    assert all(a <= b for a, b in zip(report["certified"], report["flags"]["PGD-3x2"]))  # noqa: B905


def test_an_interrupted_evaluation_goes_on(
    tmp_path: Path, run_tiny: RunTiny, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points that were decided by AutoAttack, proofs or smoothing are not computed again."""
    options = ("--objective.name=gaussian", "--threat.eps=1/2550", "--evaluation.autoattack=8")
    options += ("--evaluation.verify=8", "--evaluation.certify=cascade-fixed")
    options += ("--evaluation.smooth=8", "--evaluation.votes=100")
    whole = run_tiny("hydra", tmp_path / "whole", *options)["report"]
    write, written = end_of_run.write_text, []

    def stop(path: Path, text: str) -> None:
        if path.name == "report.json":
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(end_of_run, "write_text", stop)
        assert main(words("hydra", tmp_path / "out", *options)) == 130
    (left,) = (tmp_path / "out").glob("unfinished-evaluation-*")
    assert {path.name for path in left.iterdir()} == {"autoattack", "proofs", "smoothing"}
    monkeypatch.setattr(Journal, "put", lambda self, unit, tensors: written.append(unit))
    assert run_tiny("hydra", tmp_path / "out", *options)["report"] == whole
    assert written == [] and not list((tmp_path / "out").glob("unfinished-*"))


def test_smoothing_leaves_its_table_and_its_curve(tmp_path: Path, run_tiny: RunTiny) -> None:
    noise = ("--objective.name=gaussian", "--objective.sigma=0.12", "--threat.norm=L2")
    smooth = ("--evaluation.smooth=8", "--evaluation.votes=200")
    found = run_tiny("hydra", tmp_path / "out", *noise, *smooth)["report"]["smoothing"]
    assert (found["sigma"], found["n0"], found["n"], found["alpha"]) == (0.12, 100, 200, 0.001)
    assert len(found["radii"]) == 8 and max(found["radii"]) > 0
    right = [a == b for a, b in zip(found["predictions"], found["labels"], strict=True)]
    acr = sum(r for r, ok in zip(found["radii"], right, strict=True) if ok) / 8
    assert found["acr"] == pytest.approx(acr)
    table = (tmp_path / "out" / "smoothing.txt").read_text()
    assert "n=8" in table and f"average certified radius {acr:.4f}" in table
    assert (tmp_path / "out" / "smoothing.png").read_bytes().startswith(b"\x89PNG")
