"""Published figures next to the results of a run, each named as published or ours."""

import json
from pathlib import Path
from typing import Any

import pytest

from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.catalogue.published_comparison import beside_published
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.read import build, read_preset
from robust_plugin.recipes.papers.registry import RECIPES
from robust_plugin.threat.model import ThreatModel


def finished(folder: Path, *, eps: str, smoothing: Any = None) -> None:
    threat = ThreatModel("Linf", eps)
    right = (True,) * 6 + (False,) * 4
    report = Report(
        labels=(0,) * 10,
        flags={"clean": (True,) * 10, "PGD-20x5": right, "AutoAttack": right[3:8]},
        threats={"PGD-20x5": threat, "AutoAttack": threat},
    )
    content = {"data": "jpegs", "report": json.loads(report.to_json()), "smoothing": smoothing}
    (folder / "report.json").write_text(json.dumps(content))


def beside(command: str, preset: str, folder: Path, **changes: Any) -> str:
    kind = RECIPES[command].config
    begun = read_preset(preset, kind)
    config = build(kind, changes, where="test", default=begun)
    return beside_published(command, begun, config, folder)


def test_both_are_named_with_what_differs(tmp_path: Path) -> None:
    finished(tmp_path, eps="2/255")
    text = beside(
        "hydra",
        "hydra/cifar10-wrn28-4",
        tmp_path,
        data={"name": "folder", "folder": "jpegs"},
        threat={"eps": "2/255"},
        pretrain={"epochs": 12},
        prune={"epochs": 1},
        finetune={"epochs": 3},
    )
    assert max(map(len, text.splitlines())) <= 100
    joined = " ".join(text.split())
    assert joined == (
        "published figures at 5 % kept, of other runs than this one: "
        "era: published 54.2 (HYDRA (Sehwag et al. 2020), era of adversarial training, extra data: "
        "robust accuracy; its dense network 57.2); ours 60.0 [31.3, 83.2] (PGD-20x5, n=10); "
        "what differs: images of jpegs for CIFAR-10, eps 0.00784 for 0.031, 12+1+3 epochs for "
        "100+20+100, no extra data for 500,000 images; "
        "not known of it: attack, number of test points."
    )


def test_gradual_stands_beside_the_methods_that_it_combines(tmp_path: Path) -> None:
    finished(tmp_path, eps="8/255")
    text = " ".join(beside("gradual", "gradual/cifar10-wrn28-4", tmp_path, density=0.05).split())
    for method in ("hydra", "magnitude"):
        assert f"era: published for {method} " in text, method
    assert "rates lamp for uniform" in text
    alone = " ".join(beside("hydra", "hydra/cifar10-wrn28-4", tmp_path, density=0.05).split())
    assert "published for" not in alone and "era: published 54.2" in alone


def test_the_benchmark_has_two_metrics_and_the_budget_is_named(tmp_path: Path) -> None:
    finished(tmp_path, eps="8/255")
    text = beside("harp", "harp/cifar10-vgg16", tmp_path, density=0.01)
    benign, autoattack = " ".join(text.split()).split("one checkpoint a cell")[:2]
    assert "benign: published 79.42 (adversarial-pruning benchmark" in benign
    joined = " ".join(text.split())
    assert "autoattack: published 42.02" in joined and "(AutoAttack, n=5)" in joined
    assert "eps 0.0314 for 0.031, budget held at every step for the paper's hinge" in joined
    assert "not known of it: objective, epochs, extra data, number of test points" in joined


def test_other_settings_of_a_preset_are_named(tmp_path: Path) -> None:
    finished(tmp_path, eps="8/255")
    changes = {"model": "resnet18-w16", "rates": "erk", "objective": {"name": "mart"}}
    text = " ".join(beside("hydra", "hydra/cifar10-wrn28-4", tmp_path, **changes).split())
    assert "resnet18-w16 for wrn-28-4, objective mart for trades, rates erk for uniform" in text
    # Settings that are published for another network are compared with its figures.
    text = beside("hydra", "hydra/cifar10-wrn28-4", tmp_path, model="vgg16-bn")
    assert "era: published 48.7" in text and " for wrn-28-4" not in text


def test_another_norm_is_named_whatever_its_radius(tmp_path: Path) -> None:
    finished(tmp_path, eps="8/255")
    threat = {"norm": "L2", "eps": "0.031"}
    text = " ".join(beside("hydra", "hydra/cifar10-wrn28-4", tmp_path, threat=threat).split())
    assert "era: published 54.2" in text and "L2 eps=0.031 for Linf eps=0.031" in text
    # Certificates by smoothing are for L2.
    smoothing = {"predictions": [1], "labels": [1], "radii": [0.5]}
    finished(tmp_path, eps="8/255", smoothing=smoothing)
    text = beside("hydra", "hydra/cifar10-smoothing", tmp_path)
    assert "smoothed: published 60.7" in text and "for Linf" not in text


def test_magnitude_has_all_epochs_in_one_phase(tmp_path: Path) -> None:
    finished(tmp_path, eps="8/255")
    text = " ".join(beside("magnitude", "hydra/cifar10-vgg16", tmp_path).split())
    assert "era: published 45.2" in text and "100+120 epochs for 100+100" in text
    text = " ".join(beside("magnitude", "magnitude/cifar10-vgg16", tmp_path).split())
    assert "era of dense: published 92.5 (Sehwag et al. 2019, headline: mean over four" in text
    assert "ours not measured by this run; what differs: one network, vgg16-bn" in text


def test_smoothing_is_read_at_the_radius(tmp_path: Path) -> None:
    smoothing = {
        "predictions": [1, 2, 3, -1],
        "labels": [1, 2, 0, 1],
        "radii": [0.5, 0.4, 0.9, 0.0],
    }
    finished(tmp_path, eps="8/255", smoothing=smoothing)
    text = " ".join(beside("hydra", "hydra/cifar10-smoothing", tmp_path).split())
    assert "smoothed: published 60.7" in text and "its dense network 61.1" in text
    assert "ours 25.0 [4.6, 69.9] (radius 0.431, n=4)" in text  # eps is 0.431 = 110/255


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("hydra/digits", {}),
        ("hydra/cifar10-wrn28-4", {"density": 0.07}),
        ("hydra/cifar10-wrn28-4", {"pattern": "2:4"}),
        ("hydra/imagenet-resnet50", {}),
    ],
)
def test_where_nothing_is_published_nothing_is_said(
    preset: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    assert beside("hydra", preset, tmp_path, **changes) == ""


def test_a_run_prints_them_under_its_report(
    at_workplace: Path, tmp_path: Path, words: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config=harp/cifar10-resnet18", "--density=0.1"]
    command = words("harp", tmp_path / "out", *options)
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "published figures at 10 % kept" in first and "benign: published 83.38" in first
    assert "tiny_networks:net for resnet18" in " ".join(first.split())
    assert main(command) == 0  # the run is finished already
    assert capsys.readouterr().out == first
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "83.38" not in json.dumps(report)
