"""An attack that notes predictions: its results stay the same, and the notes are the network's."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from robust_plugin import ThreatModel, evaluate, pgd
from robust_plugin.recipes.evaluate.under_attack import (
    Watched,
    chosen_examples,
    predictions_of,
    read_examples,
    save_examples,
)

THREAT = ThreatModel("Linf", 0.2)


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network of three classes, and 40 points, of which it gets some wrong."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(40, 1, 4, 4)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    return model, x, y


def test_a_watched_attack_gives_the_same_report_and_notes_the_predictions(tmp_path: Path) -> None:
    model, x, y = network()
    attack = pgd(THREAT, steps=5, restarts=2, keep="best")
    watched, batches = Watched(attack), list(zip(x.split(16), y.split(16), strict=True))
    torch.manual_seed(0)
    plain = evaluate(model, batches, attacks=[attack], adversarial=tmp_path / "plain.pt")
    torch.manual_seed(0)
    report = evaluate(model, batches, attacks=[watched])
    assert report == plain
    right = report.flags["clean"]
    found = predictions_of(watched, model, TensorDataset(x, y), right, 7)
    x_adv = torch.load(tmp_path / "plain.pt", weights_only=True)["PGD-5x2"]
    assert json.loads(json.dumps(found)) == {
        "attack": "PGD-5x2",
        "clean": model(x).argmax(1).tolist(),
        "adversarial": model(x_adv).argmax(1).tolist(),
    }
    assert 0 < sum(report.flags["PGD-5x2"]) < sum(right) < 40  # fooled, robust and misclassified

    save_examples(watched, model, right, tmp_path / "examples.safetensors")
    examples = read_examples(tmp_path / "examples.safetensors")
    points = examples["points"].tolist()
    assert torch.equal(examples["clean"], x[points]) and torch.equal(examples["labels"], y[points])
    assert torch.equal(examples["adversarial"], x_adv[points]) and max(points) < 16
    assert torch.allclose(examples["adversarial_logits"], model(x_adv[points]), atol=1e-5)
    assert torch.allclose(examples["clean_logits"], model(x[points]), atol=1e-5)
    robust = [report.flags["PGD-5x2"][point] for point in points]
    assert robust == sorted(robust) and 0 < sum(robust) <= 2  # fooled ones first


def test_a_network_that_is_always_wrong_has_predictions_and_no_examples(tmp_path: Path) -> None:
    model, x, _ = network()
    wrong = (model(x).argmax(1) + 1) % 3
    watched = Watched(pgd(THREAT, steps=1))
    report = evaluate(model, [(x, wrong)], attacks=[watched])
    found = predictions_of(watched, model, TensorDataset(x, wrong), report.flags["clean"], 40)
    assert found["clean"] == found["adversarial"] == model(x).argmax(1).tolist()
    save_examples(watched, model, report.flags["clean"], tmp_path / "none.safetensors")
    assert read_examples(tmp_path / "none.safetensors") == {}


def test_examples_are_of_many_classes() -> None:
    labels = [0, 0, 0, 1, 1, 2, 0, 0, 1]
    fooled = [True, True, True, True, True, True, False, False, False]
    assert chosen_examples(fooled, labels) == [0, 3, 5, 1, 4, 2, 6, 8]
