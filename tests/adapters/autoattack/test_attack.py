"""AutoAttack as an attack like any other, against the library's own standard evaluation."""

import copy
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from autoattack_reference import Trained, by_the_library, network, quick
from torch import Tensor, nn

from robust_plugin import HydraPruner, Progress, ThreatModel, evaluate, finalize, pgd
from robust_plugin.adapters.autoattack import AutoAttack, component
from robust_plugin.adapters.autoattack import attack as attack_module
from robust_plugin.attacks.contract import SuspectNetwork
from robust_plugin.runtime import journal as journal_module


def test_by_itself_it_says_what_evaluate_reports(trained: Trained) -> None:
    model, x, y = trained(10)
    attack = AutoAttack(ThreatModel("Linf", 0.06), version="screen", seed=0)
    soft = nn.Sequential(model, nn.Softmax(1))
    with pytest.warns(SuspectNetwork, match=r"^screening .*: the outputs look like probabilities"):
        attack(soft, x[:4], y[:4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = evaluate(soft, [(x[:4], y[:4])], attacks=[attack])
        attack(model, x[:4], y[:4])
    assert any("look like probabilities" in finding for finding in report.findings)


class Noisy(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + 0.02 * torch.randn_like(x))
        return logits


def test_random_networks_are_for_the_version_that_is_made_for_them(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    threat, noisy = ThreatModel("Linf", 0.06), Noisy(model)
    attack = AutoAttack(threat, seed=0)
    with pytest.raises(ValueError, match="different logits for the same input"):
        attack(noisy, x[:8], y[:8])
    for_random = AutoAttack(threat, version="rand", seed=0)
    report = evaluate(noisy, [(x[:8], y[:8])], attacks=[for_random])
    assert report.findings == ("the network is random; each figure is of one draw",)
    assert report.accuracy("AutoAttack rand") < report.accuracy()
    for attacks in ([for_random, pgd(threat)], []):
        with pytest.raises(ValueError, match='AutoAttack.threat, version="rand"'):
            evaluate(noisy, [(x[:8], y[:8])], attacks=attacks)


def test_what_it_cannot_do_is_said_before_anything_runs(trained: Trained) -> None:
    model, x, y = trained(10)
    three = nn.Sequential(model, nn.Linear(10, 3))
    begun: list[int] = []

    def other(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        begun.append(len(x))
        return x

    threat = ThreatModel("Linf", 0.06)
    with pytest.raises(ValueError, match="the model has 3 classes; AutoAttack's DLR loss needs 4"):
        evaluate(three, [(x, y % 3)], attacks=[other, AutoAttack(threat)], threat=threat)
    assert begun == []


def test_a_report_gives_the_librarys_verdicts(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    threat = ThreatModel("Linf", 0.06)
    report = evaluate(model, [(x, y)], attacks=[AutoAttack(threat, seed=3)])
    assert report.rows == ("clean", "AutoAttack")
    right = model(x).argmax(1) == y
    theirs = by_the_library(model, x[right], y[right], threat)  # the others are lost anyway
    robust = right.clone()
    robust[right] = model(theirs).argmax(1) == y[right]
    assert list(report.flags["AutoAttack"]) == robust.tolist()


def test_the_global_generator_is_drawn_from_but_never_reseeded(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    threat = ThreatModel("Linf", 0.1)
    before = torch.get_rng_state()
    AutoAttack(threat, seed=3)(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first = AutoAttack(threat)(model, x, y)  # one draw
    after = torch.rand(4)
    torch.manual_seed(5)
    torch.randint(2**31, (1,))
    assert torch.equal(torch.rand(4), after)
    torch.manual_seed(5)
    assert torch.equal(AutoAttack(threat)(model, x, y), first)
    assert not torch.equal(AutoAttack(threat)(model, x, y), first)  # a fresh seed at each call


def test_a_debugger_is_left_in_place(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)

    def tracer(frame: FrameType, event: str, argument: object) -> None:
        return None

    outer = sys.gettrace()
    try:
        sys.settrace(tracer)
        AutoAttack(ThreatModel("Linf", 0.05), seed=3)(model, x, y)
        kept = sys.gettrace()
    finally:
        sys.settrace(outer)
    assert kept is tracer


@pytest.mark.parametrize("masked", [False, True])
def test_the_model_is_left_as_it_was(
    masked: bool, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    _, x, y = trained(10)
    model = network(10)
    model.train()
    model[1].eval()  # frozen BatchNorm in a training network
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    if masked:
        HydraPruner(model, 0.5).set_phase("prune")
    model[4].bias.grad = torch.full((10,), 7.0)
    flags = [module.training for module in model.modules()]
    needed = [parameter.requires_grad for parameter in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x_before = x.clone()
    AutoAttack(ThreatModel("Linf", 0.1), seed=3)(model, x, y)
    assert [module.training for module in model.modules()] == flags
    assert flags.count(False) == 1
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(x, x_before)


def test_a_point_alone_and_batches_of_any_size(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    threat = ThreatModel("Linf", 0.06)
    for n, batch_size in ((1, 250), (5, 2), (7, 7)):
        x_adv = AutoAttack(threat, seed=3, batch_size=batch_size)(model, x[:n], y[:n])
        theirs = by_the_library(model, x[:n], y[:n], threat, batch_size)
        assert torch.equal(model(x_adv).argmax(1) == y[:n], model(theirs).argmax(1) == y[:n])


def test_a_network_it_cannot_fool_or_need_not(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    wrong = (model(x).argmax(1) + 1) % 10
    assert torch.equal(AutoAttack(ThreatModel("Linf", 0.1), seed=3)(model, x, wrong), x)
    x_adv = AutoAttack(ThreatModel("Linf", 1e-4), seed=3)(model, x, y)
    assert torch.equal(model(x_adv).argmax(1), model(x).argmax(1))


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_classes_than_its_loss_needs_are_refused(classes: int) -> None:
    attack = AutoAttack(ThreatModel("Linf", 0.1))
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match=rf"{classes} classes; .*needs 4\. Take pgd\(threat"):
        attack(network(classes), x, y)
    with pytest.raises(ValueError, match=f"{classes} classes"):
        attack.check_classes(classes)
    attack.check_classes(4)


def test_another_box_gives_the_same_verdicts(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    unit = AutoAttack(ThreatModel("Linf", 0.06), seed=3)(model, x, y)

    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 256

    wide = ThreatModel("Linf", 0.06 * 256, low=0, high=256)  # a power of two divides exactly
    found = AutoAttack(wide, seed=3)(nn.Sequential(Pixels(), model), x * 256, y)
    assert torch.equal(found / 256, unit)


def test_inputs_outside_the_box_are_refused(trained: Trained) -> None:
    model, x, y = trained(10)
    with pytest.raises(ValueError, match="outside the threat model"):
        AutoAttack(ThreatModel("Linf", 0.1))(model, 2 * x, y)


def test_an_interrupted_evaluation_goes_on_from_its_journal(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    threat = ThreatModel("Linf", 0.06)
    whole = AutoAttack(threat, seed=3, batch_size=16)(model, x, y)
    seen: list[Progress] = []
    stops = [3, 6, 9, 14]  # these calls end in an interruption

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if stops and len(seen) == stops[0]:
            del stops[0]
            raise KeyboardInterrupt

    attack = AutoAttack(threat, seed=3, batch_size=16, journal=tmp_path / "j", progress=stop)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            attack(model, x, y)
    assert torch.equal(attack(model, x, y), whole)
    files = sorted(path.name for path in (tmp_path / "j").glob("*.safetensors"))
    assert len(files) == 4 * 3 + 1  # and what the network answers
    assert files[:2] == ["answers.safetensors", "apgd-ce-00000.safetensors"]
    # The points that a component gets are those that no component before it has fooled.
    totals = {progress.task: progress.total for progress in seen}
    assert list(totals) == [f"AutoAttack: {n}" for n in ("apgd-ce", "apgd-t", "fab-t", "square")]
    left = int((model(whole).argmax(1) == y).sum())
    assert list(totals.values()) == sorted(totals.values(), reverse=True)
    assert len(x) == totals["AutoAttack: apgd-ce"] > totals["AutoAttack: square"] >= left
    last = seen[-1]
    assert last == Progress("AutoAttack: square", last.total, last.total, "points")


def test_a_journal_of_something_else_is_refused_by_name(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    threat = ThreatModel("Linf", 0.06)
    AutoAttack(threat, seed=3, journal=tmp_path / "j")(model, x[:4], y[:4])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[4].bias[0] += 1
    cases: list[tuple[str, AutoAttack, nn.Module, Tensor]] = [
        ("model", AutoAttack(threat, seed=3, journal=tmp_path / "j"), other, x[:4]),
        ("points", AutoAttack(threat, seed=3, journal=tmp_path / "j"), model, x[1:5]),
        ("seed was 3", AutoAttack(threat, seed=4, journal=tmp_path / "j"), model, x[:4]),
        (
            "threat model",
            AutoAttack(ThreatModel("Linf", 0.07), seed=3, journal=tmp_path / "j"),
            model,
            x[:4],
        ),
        (
            "version was standard",
            AutoAttack(threat, version="screen", seed=3, journal=tmp_path / "j"),
            model,
            x[:4],
        ),
        (
            "batch size",
            AutoAttack(threat, seed=3, batch_size=2, journal=tmp_path / "j"),
            model,
            x[:4],
        ),
    ]
    for says, attack, other, points in cases:
        with pytest.raises(ValueError, match=f"journal of another evaluation: {says}"):
            attack(other, points, y[:4])
    again = AutoAttack(threat, seed=3, journal=tmp_path / "j")
    for what, place, name in (
        ("library", attack_module.metadata, "version"),
        ("torch", journal_module.torch, "__version__"),
        ("robust_plugin", journal_module, "__version__"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, "0.0" if name == "__version__" else lambda package: "0.0")
            with pytest.raises(ValueError, match=f"journal of another evaluation: {what} was"):
                again(model, x[:4], y[:4])
    again(model, x[:4], y[:4])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and no journal"):
        AutoAttack(threat, seed=3, journal=tmp_path / "full")(model, x[:4], y[:4])


def test_bad_settings_are_named(tmp_path: Path) -> None:
    threat = ThreatModel("Linf", 0.1)
    with pytest.raises(ValueError, match="version is 'fast'; legal: standard, plus"):
        AutoAttack(threat, version="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give a seed"):
        AutoAttack(threat, journal=tmp_path)
    with pytest.raises(ValueError, match="batch_size is 0"):
        AutoAttack(threat, batch_size=0)


def test_masks_count_while_they_are_learned(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    masked = copy.deepcopy(model)
    pruner = HydraPruner(masked, 0.5)
    pruner.set_phase("prune")
    plain = copy.deepcopy(masked)
    finalize(plain)
    attack = AutoAttack(ThreatModel("Linf", 0.06), seed=3)
    found = attack(masked, x, y)
    assert torch.equal(found, attack(plain, x, y))
    assert not torch.equal(found, attack(model, x, y))
    with torch.no_grad():
        assert 0 < (masked(found).argmax(1) == y).sum() < (masked(x).argmax(1) == y).sum()


@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 4, 4, 4)], ids=["flat", "audio", "video"])
def test_inputs_that_are_no_images_are_refused_before_anything_runs(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square draws squares; it is the last of four."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(8, *shape)
    y = model(x).argmax(1)

    def run(*words: Any) -> Tensor:
        raise AssertionError("a component ran")

    monkeypatch.setattr(component.Component, "__call__", run)
    threat = ThreatModel("Linf", 0.05)
    for version in ("standard", "plus"):
        attack = AutoAttack(threat, version=version, seed=0)  # type: ignore[arg-type]
        for call in (
            lambda attack=attack: attack(model, x, y),
            lambda attack=attack: evaluate(model, [(x, y)], attacks=[pgd(threat), attack]),
        ):
            with pytest.raises(ValueError, match=r"Square draws squares .* version='screen'"):
                call()
    monkeypatch.undo()
    report = evaluate(model, [(x, y)], attacks=[AutoAttack(threat, version="screen", seed=0)])
    assert report.accuracy("screening (apgd-ce, apgd-t)") < 1
