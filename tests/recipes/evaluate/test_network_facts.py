"""What the page of an evaluation shows of the network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_plugin import ThreatModel, evaluate, pgd
from robust_plugin.recipes.evaluate.network_facts import network_facts, strongest_attack


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[1].weight[:, :4] = 0
    return model


def points(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(40, *shape), torch.arange(40) % 3


@pytest.mark.parametrize("shape", [(1, 4, 4), (16,)])
def test_predictions_and_examples_are_those_of_the_strongest_attack(
    network: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    x, y = points(shape)
    with torch.no_grad():
        y[:25] = network(x).argmax(1)[:25]  # right without an attack
    weak, strong = (pgd(ThreatModel("Linf", eps), steps=5) for eps in (0.001, 0.2))
    attacks = {"weak": weak, "strong": strong}
    file = tmp_path / "images.pt"
    report = evaluate(network, [(x, y)], attacks=attacks, adversarial=file)
    images = torch.load(file, weights_only=True)
    assert strongest_attack(report, images) == "strong"
    facts = network_facts(network, report, images, ("a", "b", "c"), batch_size=7)
    assert facts.parameters == (36 + 3, 48 + 3) and facts.class_names == ("a", "b", "c")
    found = facts.attacked
    assert found is not None and found.attack == "strong" and found.labels == report.labels
    for row, predictions in (("clean", found.clean), ("strong", found.adversarial)):
        right = tuple(p == label for p, label in zip(predictions, found.labels, strict=True))
        assert right == report.flags[row]
    assert bool(facts.examples) == (len(shape) == 3)
    assert all(bool((each.clean != each.adversarial).any()) for each in facts.examples)
    for each in facts.examples:
        assert each.predictions == (found.clean[each.point], found.adversarial[each.point])
        assert each.label == int(y[each.point]) == each.predictions[0]  # right without an attack
        for image, label, sure in zip(
            (each.clean, each.adversarial), each.predictions, each.confidences, strict=True
        ):
            chances = network(image[None]).softmax(1)[0].detach()
            assert int(chances.argmax()) == label
            assert float(chances[label]) == pytest.approx(sure, abs=1e-6)
    fooled = [each.predictions[0] != each.predictions[1] for each in facts.examples]
    assert fooled == sorted(fooled, reverse=True)  # fooled ones first


def test_without_an_attack_there_are_no_predictions(network: nn.Module) -> None:
    x, y = points((1, 4, 4))
    facts = network_facts(network, evaluate(network, [(x, y)]), {"inputs": x}, (), batch_size=8)
    assert facts.attacked is None and facts.examples == ()


def test_a_point_that_the_attack_returns_unchanged_is_no_example(network: nn.Module) -> None:
    x, _ = points((1, 4, 4))
    with torch.no_grad():
        y = network(x).argmax(1)
    changed = x.clone()
    changed[3:5] += 0.001
    report = evaluate(network, [(x, y)], attacks={"weak": pgd(ThreatModel("Linf", 0.01), steps=1)})
    facts = network_facts(network, report, {"inputs": x, "weak": changed}, (), batch_size=40)
    assert sorted(each.point for each in facts.examples) == [3, 4]
