"""The facts of a run: those of its files, also of a folder that an older version has written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robust_plugin import Report
from robust_plugin.recipes.evaluate.run_facts import run_facts
from robust_plugin.recipes.pages.run_page import run_page
from robust_plugin.recipes.papers.registry import finished_run


def test_the_facts_are_those_of_the_files(run: Path) -> None:
    facts = run_facts(finished_run(run), method="hydra", command="robust-plugin hydra")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [vars(epoch) for epoch in facts.epochs] == [
        {name: value for name, value in line.items() if name != "epoch"} for line in log
    ]
    # uniform rates: each layer keeps 30 %, and so does the network
    assert set(facts.epochs[-1].densities) == {"0.weight", "3.weight", "6.weight"}
    assert facts.epochs[0].densities == {} and facts.epochs[0].density == 1.0
    assert facts.epochs[-1].densities["3.weight"] == pytest.approx(0.3, abs=0.01)
    state = load_file(run / "model.safetensors")
    assert [mask.name for mask in facts.masks] == ["0.weight", "3.weight", "6.weight"]
    assert all(torch.equal(mask.kept, state[mask.name] != 0) for mask in facts.masks)
    counts = {layer.name: (layer.kept, layer.size) for layer in facts.layers}
    assert counts == {
        name: (int(state[name].count_nonzero()), state[name].numel()) for name in counts
    }
    assert facts.validation == "PGD-2" and facts.threat == "Linf eps=20/255"
    assert facts.class_names == ("class0", "class1", "class2", "class3")


def test_predictions_and_examples_are_those_of_the_evaluation(run: Path) -> None:
    facts = run_facts(finished_run(run), method="hydra", command="")
    report = Report.from_json(json.dumps(json.loads((run / "report.json").read_text())["report"]))
    assert facts.report == report and facts.attacked is not None
    for row, predictions in (
        ("clean", facts.attacked.clean),
        ("PGD-3x2", facts.attacked.adversarial),
    ):
        right = tuple(a == b for a, b in zip(predictions, report.labels, strict=True))
        assert right == report.flags[row]
    assert 0 < len(facts.examples) <= 8
    for example in facts.examples:
        assert example.label == report.labels[example.point] == example.predictions[0]
        assert (example.predictions[1] == example.label) == report.flags["PGD-3x2"][example.point]
        assert all(0.25 <= each <= 1 for each in example.confidences)  # the largest of four
        assert (example.adversarial - example.clean).abs().max() <= 20 / 255 + 1e-6


def test_the_dense_network_is_measured_once(run: Path) -> None:
    facts = run_facts(finished_run(run), method="hydra", command="")
    again = run_facts(finished_run(run), method="hydra", command="")
    assert facts.dense is not None and facts.pruned is not None
    assert facts.dense == again.dense  # with the same latency, which nobody measures twice the same
    assert facts.dense.parameters == 3 * 8 * 9 + 8 * 2 + 8 * 16 * 9 + 16 + 64 * 4 + 4
    pruned = sum(layer.size - layer.kept for layer in facts.layers)
    assert facts.dense.parameters - facts.pruned.parameters == pruned
    assert [each.extra_epochs for each in facts.comparisons] == [8, 8]  # 2 of prune, 6 of finetune
    assert facts.pruned.report.flags == {
        row: facts.report.flags[row] for row in facts.dense.report.rows
    }


@pytest.mark.usefixtures("pages")
def test_the_page_of_a_gradual_run_shows_its_shrink_phase(
    tmp_path: Path, run_tiny: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    run_tiny("gradual", out, "--finetune.epochs=6", "--pretrain.select=last")
    facts = run_facts(finished_run(out), method="gradual", command="")
    stages = [epoch.stage for epoch in facts.epochs]
    assert stages == ["pretrain"] * 2 + ["shrink"] * 2 + ["prune"] * 2 + ["finetune"] * 4
    densities = [epoch.density for epoch in facts.epochs]
    assert densities[1] == 1.0 > densities[2] > densities[3] > densities[4] == densities[-1]
    assert set(facts.epochs[2].densities) == {"0.weight", "3.weight", "6.weight"}
    # The dense network beside it is that of pre-training, which trained eight epochs less.
    assert [each.extra_epochs for each in facts.comparisons] == [8, 8]
    assert facts.dense is not None and facts.pruned is not None
    pruned = sum(layer.size - layer.kept for layer in facts.layers)
    assert facts.dense.parameters - facts.pruned.parameters == pruned
    html = " ".join((out / "report.html").read_text().split())
    assert "Stages: pretrain, shrink, prune, finetune. The part in grey trained the dense" in html
    assert "In the stage shrink, it falls while the weights train." in html
    shown = re.findall(r"<text[^>]*>(pretrain|shrink|prune|finetune)</text>", html)
    assert shown.count("shrink") == 2  # in both plots of the training


def test_a_folder_of_an_older_version_has_a_page(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    for name in ("examples.safetensors", "before_after.json", "pretrain.best.safetensors"):
        (old / name).unlink()
    content = json.loads((old / "report.json").read_text())
    del content["attacked"], content["findings"]
    (old / "report.json").write_text(json.dumps(content))
    lines = [json.loads(line) for line in (old / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["densities"]
    (old / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    facts = run_facts(finished_run(old), method="hydra", command="")
    assert facts.dense is None and facts.attacked is None and facts.examples == ()
    assert all(epoch.densities == {} for epoch in facts.epochs)
    html = run_page(facts)
    assert "<h2>Training</h2>" in html and "<h2>Dense and pruned</h2>" not in html
