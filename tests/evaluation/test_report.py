"""A report as a table, as JSON and as an entry of RobustBench."""

import json

import pytest
import torch
from threshold import Threshold, batches, down, up

from robust_plugin import (
    IBP,
    Report,
    ThreatModel,
    evaluate,
    pgd,
    wilson_interval,
)


def test_report_survives_json(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    for attacks in ([], [up], [up, down(threat)]):
        report = evaluate(
            Threshold(),
            batches(x, y),
            attacks=attacks,
            threat=threat,
            limits={"up": 30} if attacks else None,
        )
        again = Report.from_json(report.to_json())
        assert again == report and str(again) == str(report)
        content = json.loads(report.to_json())
        assert content["clean_acc"] == pytest.approx(100 * report.accuracy())
        assert content["autoattack_acc"] is None
        if attacks:
            assert content["worst_case_acc"] == pytest.approx(100 * report.accuracy("worst case"))
            assert content["threat"] == "Linf eps=0.1"
    named = Report((0, 1), {"clean": (True, True), "AutoAttack": (True, False)})
    assert json.loads(named.to_json())["autoattack_acc"] == 50.0


def test_table_by_hand():
    report = Report(
        (0, 0, 0, 1),
        {
            "clean": (True, True, False, True),
            "a": (True, False, False, True),
            "b": (False, False, False, True),
        },
        {"a": ThreatModel("L2", 1.0), "b": ThreatModel("L2", 1.0)},
    )
    low, high = wilson_interval(3, 4)
    lines = str(report).splitlines()
    assert lines[0] == "threat model: L2 eps=1"
    assert lines[1].split() == [
        "clean",
        "75.0",
        f"[{100 * low:.1f},",
        f"{100 * high:.1f}]",
        "n=4",
        "balanced",
        "83.3",
    ]
    assert lines[-1].startswith("worst case   25.0 ")
    assert report.per_class("a") == {0: 1 / 3, 1: 1.0}


def test_of_several_threat_models_each_row_names_its_own():
    report = Report(
        (0, 1),
        {"clean": (True, True), "a": (True, False), "b": (False, True)},
        {"a": ThreatModel("L2", 1.0), "b": ThreatModel("Linf", 8 / 255)},
        certified=(True, False),
        certified_threat=ThreatModel("L2", 0.5),
    )
    lines = str(report).splitlines()
    assert lines[0] == "threat model: L2 eps=0.5; L2 eps=1; Linf eps=8/255"
    starts = [
        "clean  ",
        "a, L2 eps=1  ",
        "b, Linf eps=8/255  ",
        "worst case",
        "certified, L2 eps=0.5",
    ]
    assert all(line.startswith(start) for line, start in zip(lines[1:], starts, strict=True))


def test_figures_beside_each_other_are_of_the_same_points():
    """Under an attack with a limit, every row is shown again on the points of that attack."""
    threat = ThreatModel("Linf", 0.1)
    report = Report(
        (0, 1) * 5,
        {
            "clean": (True,) * 9 + (False,),
            "PGD": (True,) * 3 + (False,) * 7,
            "AutoAttack": (True, True, False, False),
        },
        {"PGD": threat, "AutoAttack": threat},
        certified=(True, False),
        certified_threat=threat,
    )
    four = ("clean", "PGD", "AutoAttack", "worst case")
    assert report.rows_by_n == {10: ("clean", "PGD"), 4: four, 2: (*four, "certified")}
    tables = str(report).partition("\n")[2].split("points:\n")
    assert tables[0] == "all 10 " and tables[1].endswith("\nthe first 4 ")
    assert tables[2].endswith("\nthe first 2 ")
    shown = [[line.split(" [")[0].split() for line in table.splitlines()] for table in tables]
    assert shown[1][:2] == [["clean", "90.0"], ["PGD", "30.0"]]
    assert shown[2][:4] == [
        ["clean", "100.0"],
        ["PGD", "75.0"],
        ["AutoAttack", "50.0"],
        ["worst", "case", "50.0"],
    ]
    assert shown[3][1:] == [
        ["PGD", "100.0"],
        ["AutoAttack", "100.0"],
        ["worst", "case", "100.0"],
        ["certified", "50.0"],
    ]
    assert all("n=4 " in line for line in tables[2].splitlines()[:4])
    content = json.loads(report.to_json())["acc_by_n"]
    assert content["4"] == {"clean": 100, "PGD": 75, "AutoAttack": 50, "worst case": 50}
    assert Report.from_json(report.to_json()) == report
    assert "points:" not in str(report.first(2))  # all rows have two points
    with pytest.raises(ValueError, match="n is 11; legal: 1 to 10"):
        report.first(11)


def test_robustbench_fields():
    flags = {"clean": (True, True, False, True), "AutoAttack": (True, False, False, False)}
    ball = {"AutoAttack": ThreatModel("Linf", "8/255")}
    report = Report((0, 1, 0, 1), flags, ball)
    entry = report.robustbench(name="net", dataset="cifar10", architecture="ResNet-18")
    assert entry == {
        "name": "net",
        "dataset": "cifar10",
        "architecture": "ResNet-18",
        "threat_model": "Linf",
        "eps": "8/255",
        "n": 4,
        "clean_acc": "75.00",
        "autoattack_acc": "25.00",
    }
    few = {"clean": (True,) * 4, "AutoAttack": (True,) * 2}
    for wrong in (Report((0,) * 4, {"clean": (True,) * 4}), Report((0,) * 4, few, ball)):
        with pytest.raises(ValueError, match="standard AutoAttack on all points, 4"):
            wrong.robustbench()


def test_a_report_keeps_what_made_it(cnn, batch):
    model, (x, y) = cnn().eval(), batch
    box = ThreatModel("Linf", 0.1, low=-1, high=1)

    def mine(model, x, y):
        return x

    attacks = {"mine": mine, "PGD": pgd(box, steps=7, restarts=2)}
    torch.manual_seed(1234)
    report = evaluate(model, [(x, y)], attacks=attacks, threat=box, certifier=IBP(box))
    assert report.attacks == {
        "mine": f"{__name__}.test_a_report_keeps_what_made_it.<locals>.mine",
        "PGD": "PGD(threat=ThreatModel(norm='Linf', eps=0.1, low=-1.0, high=1.0), steps=7, "
        "step_size=0.03571428571428571, loss='ce', start='uniform', restarts=2, keep='last')",
        "certified": "IBP(threat=ThreatModel(norm='Linf', eps=0.1, low=-1.0, high=1.0))",
    }
    assert report.versions["torch"] == torch.__version__ and "robust_plugin" in report.versions
    assert report.seed == 1234
    content = json.loads(report.to_json())
    for key in ("attacks", "versions", "seed", "remarks"):
        assert content[key] == getattr(report, key)
    assert content["threats"]["PGD"] == {"norm": "Linf", "eps": 0.1, "low": -1.0, "high": 1.0}
    assert Report.from_json(report.to_json()) == report
    for key in ("attacks", "versions", "seed", "remarks"):  # a report of an earlier version
        del content[key]
    assert Report.from_json(json.dumps(content)).flags == report.flags
