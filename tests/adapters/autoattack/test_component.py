"""Components with the library's parameters and verdicts."""

from typing import Any, Literal

import pytest
import torch
from autoattack_reference import Trained, by_the_library, quick
from torch import Tensor, nn

from robust_plugin import ThreatModel
from robust_plugin.adapters.autoattack import AutoAttack, Version, component
from robust_plugin.adapters.autoattack import attack as attack_module
from robust_plugin.attacks.fab import FabSettings
from robust_plugin.attacks.survivors import Survivors


@pytest.mark.parametrize(
    ("norm", "eps", "classes", "length"),
    [
        ("Linf", 0.06, 10, "full"),
        ("L2", 0.4, 10, "quick"),
        ("Linf", 0.06, 7, "quick"),
        pytest.param("L2", 0.4, 7, "full", marks=pytest.mark.bench),
    ],
)
def test_its_verdicts_are_the_librarys_own(
    norm: Literal["Linf", "L2"],
    eps: float,
    classes: int,
    length: str,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if length == "quick":
        quick(monkeypatch)
    model, x, y = trained(classes)
    threat = ThreatModel(norm, eps)
    ours = AutoAttack(threat, seed=3)(model, x, y)
    theirs = by_the_library(model, x, y, threat)
    right, left = model(x).argmax(1) == y, model(ours).argmax(1) == y
    assert torch.equal(left, model(theirs).argmax(1) == y)
    assert 0 < left.sum() < right.sum() <= len(y)  # verdicts of both kinds
    assert torch.equal(ours[left], x[left])  # points it cannot fool come back as they were
    size = threat.norms(ours - x)
    assert size.max() <= eps + 1e-5 and size[right & ~left].min() > 0
    assert ours.min() >= 0 and ours.max() <= 1


# Restarts, steps, targets and queries of the paper (Croce and Hein 2020, section 5).
STANDARD = [("apgd", 100)] + 9 * [("apgd", 100)] + 9 * [("fab", 100, False)] + [("square", 5000)]


PLUS = [
    *(10 * [("apgd", 100)]),  # five restarts each of cross-entropy and DLR
    ("fab", 100, False), *(4 * [("fab", 100, True)]),
    ("square", 5000), *(9 * [("apgd", 100)]), *(9 * [("fab", 100, False)]),
]  # fmt: skip


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    ("version", "wanted"),
    [("standard", STANDARD), ("plus", PLUS), ("screen", STANDARD[:10])],
)
def test_no_version_is_shortened(
    norm: Literal["Linf", "L2"],
    version: Version,
    wanted: list[tuple[Any, ...]],
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Verdicts on small networks hardly tell a tenth of the steps from all of them."""
    runs: list[tuple[Any, ...]] = []

    def climb(points: Survivors, loss: Any, *, steps: int, rho: float) -> None:
        assert rho == 0.75
        runs.append(("apgd", steps))

    def near(points: Survivors, target: Any, settings: FabSettings, *, random_start: bool) -> None:
        assert (settings.overshoot, settings.backward, settings.bias) == (1.05, 0.9, 0.1)
        runs.append(("fab", settings.steps, random_start))

    def squares(points: Survivors, *, queries: int, share: float) -> None:
        assert share == 0.8
        runs.append(("square", queries))

    for name, spy in (("apgd", climb), ("fab", near), ("square", squares)):
        monkeypatch.setattr(component, name, spy)
    model, x, y = trained(10)
    AutoAttack(ThreatModel(norm, 0.1), version=version, seed=0)(model, x, y)
    assert runs == wanted


@pytest.mark.parametrize("version", ["plus", "rand", "screen"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_version_in_every_norm_stays_in_the_ball(
    version: Any, norm: Any, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    threat = ThreatModel(norm, {"Linf": 0.08, "L2": 0.5, "L1": 4.0}[norm])
    attack = AutoAttack(threat, version=version, seed=3)
    x_adv = attack(model, x, y)
    left, right = model(x_adv).argmax(1) == y, model(x).argmax(1) == y
    assert left.sum() < right.sum()
    assert threat.norms(x_adv - x).max() <= threat.eps * (1 + 1e-4)
    assert ("screening" in attack.name) == (version == "screen")
    if version == "plus":  # all of the standard version's attacks, and more
        standard = AutoAttack(threat, seed=3)(model, x, y)
        assert left.sum() <= (model(standard).argmax(1) == y).sum()


def test_fooled_points_are_not_computed_again(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model, x, y = trained(10)
    right = model(x).argmax(1) == y
    computed = [0]

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        computed[0] += len(inputs[0])

    class Untraceable(nn.Module):  # so that the very network is called, and no copy of it
        def forward(self, x: Tensor) -> Tensor:
            return x + 0 if bool(x.sum() > -1) else x

    counted = nn.Sequential(Untraceable(), model).eval()
    monkeypatch.setattr(attack_module, "fast_copy", lambda model, x: model)
    counted.register_forward_pre_hook(count)
    AutoAttack(ThreatModel("Linf", 0.5), seed=3)(counted, x[right], y[right])  # fools all at once
    # What is looked at before it begins, and few passes more.
    assert computed[0] < 12 * int(right.sum())
