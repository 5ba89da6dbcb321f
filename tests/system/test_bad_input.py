"""Wrong words in the public calls: each raises one sentence that names the value and what to do."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from torch import nn

from robust_plugin import (
    IBP,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Smoothed,
    ThreatModel,
    adversarial,
    certified,
    evaluate,
    gaussian,
    ibp_margins,
    mart,
    mixtrain,
    pgd,
    smoothadv,
    stability,
    trades,
    verify,
)
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.adapters.onnx import export_onnx
from robust_plugin.attacks.contract import Attack, guarded
from robust_plugin.attacks.minimum_norm import MinimumNorm
from robust_plugin.evaluation.obfuscated_gradients import obfuscation
from robust_plugin.objectives.by_attack import Objective
from robust_plugin.pruning import checkpoint
from robust_plugin.pruning.sparsity_table import sparsity as table

THREAT = ThreatModel("Linf", eps=0.1)
X, Y = torch.rand(4, 8), torch.tensor([0, 1, 0, 1])


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def harp_that_follows(**lengths: Any) -> None:
    pruner = HarpPruner(net(), density=0.5)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, **lengths)


PRUNING: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: HydraPruner(net(), True), ValueError, "density is True; legal: 0 < density <= 1"),
    (
        lambda: MagnitudePruner(net(), {"0.weight": 0.5}),
        ValueError,
        "Densities by name go to rates=",
    ),
    (
        lambda: HydraPruner(net(), 0.5, rates=0.1),
        ValueError,
        "rates is 0.1; legal: uniform, erk, lamp, global, a function, or a dict",
    ),
    (lambda: HydraPruner(net(), 0.5, rates=None), ValueError, "rates is None; legal"),
    (
        lambda: HydraPruner(net(), rates={"0.weight": "0.5", "2.weight": 0.5}),
        ValueError,
        "the rate of 0.weight is '0.5'; legal: 0 < rate <= 1",
    ),
    (
        lambda: HydraPruner(net(), 0.5, budget="flops", example_inputs="x"),
        TypeError,
        "example_inputs is str; give what one forward pass takes",
    ),
    (lambda: table(3), TypeError, "model is a int; give an nn.Module"),
    (
        lambda: harp_that_follows(epochs=1.5, steps_per_epoch=2),
        ValueError,
        "epochs is 1.5 and steps_per_epoch is 2; legal: whole",
    ),
]
TRAINING: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: trades(THREAT, beta=-1), ValueError, "beta is -1; legal: at least 0"),
    (lambda: mart(THREAT, beta=float("nan")), ValueError, "beta is nan; legal"),
    (lambda: stability(sigma=0), ValueError, "sigma is 0; legal: a number above 0"),
    (lambda: adversarial(THREAT), TypeError, "give a callable, such as pgd(threat)"),
    (lambda: trades("8/255"), TypeError, "threat is '8/255'; give a ThreatModel"),
    (lambda: certified(pgd(THREAT)), TypeError, "give a ThreatModel"),
    (lambda: certified(THREAT, bounds="IBP"), TypeError, "bounds is 'IBP'; give a function"),
    (lambda: mixtrain(THREAT, bounds=None), TypeError, "bounds is None; give a function"),
    (lambda: mixtrain("x", bounds=ibp_margins), TypeError, "threat is 'x'; give a ThreatModel"),
    (lambda: smoothadv("x"), TypeError, "threat is 'x'; give a ThreatModel"),
]
# None of these attacks first, which would check the labels.
WITHOUT_ATTACK = [
    certified(THREAT),
    certified(THREAT, kappa=(1.0, 1.0)),
    mixtrain(THREAT, bounds=ibp_margins),
    gaussian(sigma=0.1),
    stability(sigma=0.1),
    smoothadv(ThreatModel("L2", eps=0.1), sigma=0.1, steps=2),
]
EVALUATION: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: evaluate(net(), [(X, Y)], attacks=[pgd], threat=THREAT),
        TypeError,
        "pgd cannot be called as attack(model, x, y)",
    ),
    (
        lambda: evaluate(net(), [(X, Y)], attacks=[AutoAttack], threat=THREAT),
        TypeError,
        "AutoAttack is a class; give an attack made of it, such as AutoAttack(threat)",
    ),
    (
        lambda: evaluate(net(), [(X, Y)], attacks=[torchattacks.PGD(net())], threat=THREAT),
        TypeError,
        "give TorchAttack(torchattacks.PGD, threat) of robust_plugin.adapters.torchattacks",
    ),
    (lambda: pgd(THREAT, step_size=0), ValueError, "step_size is 0: 10 steps of it lead 0 far"),
    (
        lambda: pgd(THREAT, steps=20, step_size=1e-4),
        ValueError,
        "so that the attack would hardly leave its start. Legal: at least 0.0005",
    ),
    (
        lambda: AutoAttack(ThreatModel("L1", 2), seed=0)(net(), X, Y),
        ValueError,
        "No attack here moves in L1 with so few; take torchattack('EADL1', threat)",
    ),
    (lambda: pgd(ThreatModel("L1", 2)), ValueError, "AutoAttack (four classes or more), or"),
    (lambda: pgd(THREAT)(None, X, Y), TypeError, "model is a NoneType; give an nn.Module"),
    (lambda: pgd(THREAT)(net(), [(X, Y)], Y), TypeError, "inputs are a list; give a tensor"),
    (lambda: guarded(pgd(THREAT), "Linf"), TypeError, "threat is 'Linf'; give a ThreatModel"),
    (lambda: AutoAttack("8/255"), TypeError, "threat is '8/255'; give a ThreatModel"),
    (lambda: evaluate(net(), None), TypeError, "loader is a NoneType; give batches"),
    (lambda: evaluate(net(), [(X, Y)], attacks=3), TypeError, "attacks is 3; give a list"),
    (lambda: evaluate(net(), [(X, Y)], limits=3), TypeError, "limits is 3; give a dict"),
    (
        lambda: evaluate(net(), [(X, Y)], certifier="IBP"),
        TypeError,
        "certifier is 'IBP'; give a callable, such as IBP(threat)",
    ),
    (
        lambda: evaluate(net(), [(X, Y)], adversarial=3),
        TypeError,
        "adversarial is 3; give the name of a file",
    ),
    (lambda: obfuscation(net(), X, Y, "8/255"), TypeError, "give a ThreatModel"),
    (lambda: verify(net(), X, Y, []), TypeError, "methods is []; give a dict"),
    (lambda: IBP("Linf"), TypeError, "threat is 'Linf'; give a ThreatModel"),
    (lambda: LiRPA("x"), TypeError, "threat is 'x'; give a ThreatModel"),
    (lambda: LiRPA(THREAT)(net(), X[:0], Y[:0]), ValueError, "the batch is empty"),
    (lambda: Smoothed(sigma="1/4"), ValueError, "sigma is '1/4'; legal: a number above 0"),
]


@pytest.mark.parametrize(("call", "kind", "message"), [*PRUNING, *TRAINING, *EVALUATION])
def test_a_wrong_word_is_named(
    call: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize("objective", WITHOUT_ATTACK)
def test_labels_that_are_not_there(objective: Objective) -> None:
    assert objective(net(), X, Y.int()).isfinite()
    for labels in (Y + 2, Y - 100, Y.where(Y == 1, -100)):
        with pytest.raises(ValueError, match="legal: integers 0 to 1, the model has 2 classes"):
            objective(net(), X, labels)
    with pytest.raises(ValueError, match="labels are torch.float32"):
        objective(net(), X, Y.float())


def test_a_wrong_word_in_an_export_is_named_and_nothing_written(tmp_path: Path) -> None:
    for words, message in (
        ((None, tmp_path / "a.onnx", X), "model is a NoneType; give an nn.Module"),
        ((net(), tmp_path, X), f"path is {tmp_path}, a folder; give the name of a file"),
        ((net(), tmp_path / "a.onnx", "x"), "example_inputs is a str; give tensors"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            export_onnx(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_with_masks_tells_a_plain_network_what_it_lacks(tmp_path: Path) -> None:
    masked, plain = net(), net()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    pruner = HydraPruner(masked, density=0.5)
    checkpoint.save(tmp_path / "masked.safetensors", model=masked, pruner=pruner)
    saved = checkpoint.load(tmp_path / "masked.safetensors")
    with pytest.raises(ValueError, match="attach the pruner that the file was written with"):
        saved.restore(model=plain)
    assert all(tensor.equal(before[name]) for name, tensor in plain.state_dict().items())


def test_a_pruner_says_what_it_is() -> None:
    pruner = HydraPruner(net(), density=0.5)
    assert repr(pruner) == ("HydraPruner(phase='attached', 2 groups, keeps 20 of 40, budget 0.5)")


ONE_OUTPUT = nn.Sequential(nn.Linear(8, 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda y: evaluate(ONE_OUTPUT, [(X, y)]),
        lambda y: pgd(THREAT)(ONE_OUTPUT, X, y),
        lambda y: trades(THREAT)(ONE_OUTPUT, X, y),
        lambda y: IBP(THREAT)(ONE_OUTPUT, X, y),
        lambda y: verify(ONE_OUTPUT, X, y, {"IBP": IBP(THREAT)}),
        lambda y: Smoothed(0.1, n=10).certify(ONE_OUTPUT, X, y),
        lambda y: obfuscation(ONE_OUTPUT, X, y, THREAT),
    ],
    ids=["evaluate", "pgd", "trades", "IBP", "verify", "smoothing", "obfuscation"],
)
def test_one_output_is_refused(call: Callable[[torch.Tensor], Any]) -> None:
    """Of one output the largest is always the first: all labels 0 would be 100 % robust."""
    with pytest.raises(ValueError, match="returned one output per point; .* torch.cat"):
        call(torch.zeros(4, dtype=torch.long))


class Uncopied(nn.Module):
    """A network that copy.deepcopy does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.lock = net(), threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    "attack", [pgd(THREAT), MinimumNorm(THREAT, steps=3)], ids=["pgd", "minimum norm"]
)
def test_networks_of_any_make_are_attacked_or_refused_in_words(attack: Attack) -> None:
    plain = net()
    wanted = evaluate(plain, [(X, Y)], attacks=[attack]).flags
    uncopied = Uncopied()
    uncopied.layers = plain
    for model in (torch.jit.script(plain), torch.jit.trace(plain, X), uncopied):
        assert evaluate(model, [(X, Y)], attacks=[attack]).flags == wanted
    exported = torch.export.export(plain, (X,)).module()
    with pytest.raises(ValueError, match="has no evaluation mode .* give the network that it was"):
        evaluate(exported, [(X, Y)], attacks=[attack])


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (X.double(), r"inputs are torch.float64 and the model's weights torch.float32; give x.to"),
        (X[:, :3], r"the model cannot take inputs of shape \(4, 3\) .* legal: \[B, ...\]"),
    ],
    ids=["float64", "shape"],
)
def test_inputs_that_a_network_does_not_take_are_named(x: torch.Tensor, says: str) -> None:
    for call in (
        lambda: pgd(THREAT)(net(), x, Y),
        lambda: MinimumNorm(THREAT)(net(), x, Y),
        lambda: evaluate(net(), [(x, Y)]),
        lambda: obfuscation(net(), x, Y, THREAT),
        lambda: guarded(lambda model, x, y: model(x), THREAT)(net(), x, Y),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_an_attacks_own_failure_stays_its_own() -> None:
    def broken(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("of the attack")

    with pytest.raises(RuntimeError, match="^of the attack$"):
        guarded(broken, THREAT)(net(), X, Y)
