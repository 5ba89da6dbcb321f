"""torchattacks through the adapter: nothing of the caller's changes, the ball is the threat's."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from suspect_networks import cnn, digits, trained  # noqa: E402
from torch import Tensor, nn

from robust_plugin import ThreatModel, evaluate
from robust_plugin.adapters.torchattacks import TorchAttack

Points = tuple[Tensor, Tensor]

# Each class, options that make it quick, and whether it draws noise.
LINF: list[tuple[str, dict[str, Any], bool]] = [
    ("FGSM", {}, False),
    ("BIM", {"steps": 3}, False),
    ("RFGSM", {"steps": 2}, True),
    ("PGD", {"steps": 3}, True),
    ("EOTPGD", {"steps": 2}, True),
    ("FFGSM", {}, True),
    ("TPGD", {"steps": 3}, True),
    ("MIFGSM", {"steps": 3}, False),
    ("UPGD", {"steps": 3, "random_start": True}, True),
    ("APGD", {"steps": 5}, True),
    ("APGDT", {"steps": 5}, True),
    ("DIFGSM", {"steps": 2, "random_start": True}, True),
    ("TIFGSM", {"steps": 2, "random_start": True, "len_kernel": 3}, True),
    ("Jitter", {"steps": 3}, True),
    ("NIFGSM", {"steps": 3}, False),
    ("PGDRS", {"steps": 2, "noise_batch_size": 2}, True),
    ("SINIFGSM", {"steps": 2, "m": 2}, False),
    ("VMIFGSM", {"steps": 2, "N": 2}, True),
    ("VNIFGSM", {"steps": 2, "N": 2}, True),
    ("SPSA", {"nb_sample": 8, "max_batch_size": 8}, True),
    ("PIFGSM", {"num_iter_set": 2}, False),
    ("PIFGSMPP", {"num_iter_set": 2}, False),
    ("FAB", {"steps": 3}, False),
    ("Square", {"n_queries": 20}, True),
]
# Without a radius: what they find stays only within a ball that has room for it.
FREE: list[tuple[str, dict[str, Any], bool]] = [
    ("GN", {"std": 0.02}, True),
    ("DeepFool", {"steps": 3}, False),
    ("SparseFool", {"steps": 2}, False),
    ("JSMA", {}, False),
    ("OnePixel", {"steps": 2, "popsize": 4}, True),
    ("Pixle", {"restarts": 2, "max_iterations": 2}, True),
    ("EADL1", {"max_iterations": 10, "binary_search_steps": 2}, False),
    ("EADEN", {"max_iterations": 10, "binary_search_steps": 2}, False),
]
L2 = [
    ("PGDL2", {"steps": 3}, True),
    ("PGDRSL2", {"steps": 2, "noise_batch_size": 2}, True),
    ("APGD", {"steps": 5}, True),
    ("Square", {"n_queries": 20}, True),
]
EVERY = [
    *(("Linf", 0.1, *row) for row in LINF),
    *(("L2", 3.0, *row) for row in L2),
    *(("L2", 30.0, *row) for row in FREE),
]


@pytest.fixture
def network() -> nn.Module:
    """In training mode, with a frozen BatchNorm, a dropout and gradients that somebody needs."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 7.0)
    return model


@pytest.fixture
def points(network: nn.Module) -> Points:
    x = torch.rand(4, 3, 16, 16)
    flags = [(module, module.training) for module in network.modules()]
    with torch.no_grad():
        y = network.eval()(x).argmax(1)
    for module, training in flags:
        module.training = training
    return x, y


def state(model: nn.Module) -> dict[str, Any]:
    """All that an attack could disturb."""
    return {
        "flags": [module.training for module in model.modules()],
        "trained": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "tensors": [t.clone() for t in model.state_dict().values()],
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.equal(b)
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize(
    ("norm", "eps", "name", "options", "random"),
    EVERY,
    ids=[f"{row[0]}-{row[2]}" for row in EVERY],
)
def test_every_class_keeps_to_the_contract(
    norm: Any,
    eps: float,
    name: str,
    options: dict[str, Any],
    random: bool,
    network: nn.Module,
    points: Points,
) -> None:
    x, y = points
    threat = ThreatModel(norm, eps)
    attack = TorchAttack(getattr(torchattacks, name), threat, options=options)
    before = state(network)
    torch.manual_seed(5)
    np.random.seed(5)
    first = attack(network, x, y)
    after_one = torch.get_rng_state()
    second = attack(network, x, y)
    assert same(state(network), before)
    # The torch generator moved on by what the adapter drew, and nobody seeded it anew.
    assert not torch.get_rng_state().equal(after_one)
    torch.manual_seed(5)
    torch.randint(2**31, (1,))
    assert torch.get_rng_state().equal(after_one)
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    attack(network, x, y)
    assert np.random.rand() == expected
    for x_adv in (first, second):
        assert x_adv.shape == x.shape and not x_adv.requires_grad
        assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
        assert float(threat.norms(x_adv - x).max()) <= threat.eps * (1 + 1e-4)
    assert first.equal(second) != random


def test_a_given_seed_gives_the_same_noise(network: nn.Module, points: Points) -> None:
    x, y = points
    threat = ThreatModel("Linf", 0.1)
    for name in ("PGD", "Square", "APGD"):
        attack = TorchAttack(getattr(torchattacks, name), threat, seed=3)
        assert attack(network, x, y).equal(attack(network, x, y)), name
        other = TorchAttack(getattr(torchattacks, name), threat, seed=4)
        assert not attack(network, x, y).equal(other(network, x, y)), name


def test_radius_and_step_are_those_of_the_threat_model(network: nn.Module, points: Points) -> None:
    # By the library itself, given the same numbers.
    x, y = points
    eps = 0.2
    found = TorchAttack(torchattacks.BIM, ThreatModel("Linf", eps))(network, x, y)
    network.eval()
    expected = torchattacks.BIM(network, eps=eps, alpha=eps / 4, steps=10)(x, y)
    assert found.equal(expected)
    alpha = {"alpha": 0.01, "steps": 3}
    found = TorchAttack(torchattacks.BIM, ThreatModel("Linf", eps), options=alpha)(network, x, y)
    assert found.equal(torchattacks.BIM(network, eps=eps, alpha=0.01, steps=3)(x, y))


def test_another_box_is_scaled(network: nn.Module, points: Points) -> None:
    class FromMinusOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net((x + 1) / 2)
            return out

    x, y = points
    unit = TorchAttack(torchattacks.BIM, ThreatModel("Linf", 0.1))(network, x, y)
    wide = TorchAttack(torchattacks.BIM, ThreatModel("Linf", 0.2, low=-1, high=1))
    found = wide(FromMinusOne(), 2 * x - 1, y)
    torch.testing.assert_close((found + 1) / 2, unit, atol=1e-5, rtol=0)


def test_an_instance_is_used_as_it_is_and_left_alone(network: nn.Module, points: Points) -> None:
    x, y = points
    other = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    for name, options in (("BIM", {"eps": 0.1, "steps": 2}), ("SparseFool", {"steps": 2})):
        instance = getattr(torchattacks, name)(other, **options)
        adapter = TorchAttack(instance, ThreatModel("Linf", 0.1))
        fresh = TorchAttack(
            getattr(torchattacks, name),
            ThreatModel("Linf", 0.1),
            options={"steps": 2} | ({"alpha": 2 / 255} if name == "BIM" else {}),
        )
        assert adapter(network, x, y).equal(fresh(network, x, y))
        assert instance.model is other
        assert all(child.model is other for child in instance._attacks.values())


def test_a_point_beyond_the_ball_withstood(network: nn.Module, points: Points) -> None:
    x, y = points
    found = TorchAttack(torchattacks.DeepFool, ThreatModel("L2", 1e-6))(network, x, y)
    assert found.equal(x)
    network.eval()
    theirs = torchattacks.DeepFool(network)(x, y)
    assert not theirs.equal(x)
    wide = TorchAttack(torchattacks.DeepFool, ThreatModel("L2", 50.0))(network, x, y)
    assert wide.equal(theirs.detach())


def test_classes_are_counted_and_not_assumed(network: nn.Module, points: Points) -> None:
    # The library's default of ten classes makes targeted APGD ask five logits for their tenth.
    x, y = points
    attack = TorchAttack(torchattacks.APGDT, ThreatModel("Linf", 0.1), options={"steps": 2})
    assert attack(network, x, y).shape == x.shape


def test_a_report_has_its_row(network: nn.Module, points: Points) -> None:
    threat = ThreatModel("Linf", 0.3)
    attack = TorchAttack(torchattacks.PGD, threat, seed=0)
    report = evaluate(network, [points], attacks=[attack])
    assert report.rows == ("clean", "torchattacks.PGD")
    right = network.eval()(attack(network, *points)).argmax(1) == points[1]
    assert list(report.flags["torchattacks.PGD"]) == right.tolist()


def bad(kind: str) -> Callable[[nn.Module], TorchAttack]:
    linf = ThreatModel("Linf", 0.1)

    def instance(change: Callable[[Any], None]) -> Callable[[nn.Module], TorchAttack]:
        def build(model: nn.Module) -> TorchAttack:
            attack = torchattacks.PGD(model, eps=0.1)
            change(attack)
            return TorchAttack(attack, linf)

        return build

    cases: dict[str, Callable[[nn.Module], TorchAttack]] = {
        "autoattack": lambda _: TorchAttack(torchattacks.AutoAttack, linf),
        "cw": lambda _: TorchAttack(torchattacks.CW, linf),
        "no attack": lambda _: TorchAttack(nn.Linear, linf),  # type: ignore[arg-type]
        "norm": lambda _: TorchAttack(torchattacks.PGDL2, linf),
        "eps": lambda _: TorchAttack(torchattacks.PGD, linf, options={"eps": 0.3}),
        "option": lambda _: TorchAttack(torchattacks.PGD, linf, options={"stepz": 3}),
        "radius": lambda model: TorchAttack(torchattacks.PGD(model, eps=8 / 255), linf),
        "instance options": lambda model: TorchAttack(
            torchattacks.PGD(model, eps=0.1), linf, options={"steps": 3}
        ),
        "normalised": instance(lambda a: a.set_normalization_used([0.5], [0.5])),
        "training": instance(lambda a: a.set_model_training_mode(model_training=True)),
        "labels": instance(lambda a: a.set_mode_targeted_by_label(quiet=True)),
    }
    return cases[kind]


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("autoattack", ValueError, "10 iterations"),
        ("cw", ValueError, "margin"),
        ("no attack", TypeError, "class of torchattacks"),
        ("norm", ValueError, "moves in L2"),
        ("eps", ValueError, "'eps'.*threat model's"),
        ("option", ValueError, "'stepz'.*random_start"),
        ("radius", ValueError, "eps=0.03137"),
        ("instance options", ValueError, "for a class"),
        ("normalised", ValueError, "normalise inside the model"),
        ("training", ValueError, "training mode"),
        ("labels", ValueError, "labels as targets"),
    ],
)
def test_bad_input_is_named(
    kind: str, error: type[Exception], says: str, network: nn.Module
) -> None:
    with pytest.raises(error, match=says):
        bad(kind)(network)


@pytest.mark.parametrize(
    ("name", "threat", "classes"),
    [
        ("APGD", ThreatModel("L1", 1.0), 10),
        ("Square", ThreatModel("L1", 1.0), 10),
        ("APGDT", ThreatModel("Linf", 0.1), 2),
    ],
)
def test_what_the_library_fails_at_is_one_sentence(
    name: str, threat: ThreatModel, classes: int, points: Points
) -> None:
    x, y = points
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), classes)).eval()
    with pytest.raises(
        ValueError, match=rf"torchattacks.{name} failed in {threat.norm} eps=.*it may"
    ):
        TorchAttack(getattr(torchattacks, name), threat)(model, x, y % classes)


def test_a_subclass_of_a_refused_class_is_refused(network: nn.Module) -> None:
    class Mine(torchattacks.AutoAttack):  # type: ignore[misc]
        pass

    with pytest.raises(ValueError, match="it runs 10 iterations where AutoAttack runs 100"):
        TorchAttack(Mine, ThreatModel("Linf", 0.1))


def test_inputs_outside_the_box_are_refused(network: nn.Module, points: Points) -> None:
    attack = TorchAttack(torchattacks.PGD, ThreatModel("Linf", 0.1))
    with pytest.raises(ValueError, match="span"):
        attack(network, points[0] * 2, points[1])


def test_without_the_library_one_sentence_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match="pip install --no-deps torchattacks"):
        TorchAttack(torchattacks.PGD, ThreatModel("Linf", 0.1))


@pytest.mark.parametrize("name", ["EADL1", "EADEN"])
def test_what_a_class_leaves_the_box_by_is_clamped(name: str) -> None:
    """Both leave [0, 1] by some 1e-5, and only what leaves it by that little is clamped."""
    model, (x, y) = trained("cnn", cnn), digits(30)
    kind, threat = getattr(torchattacks, name), ThreatModel("L1", 64.0)
    raw = kind(model)(x, y)
    assert max(float(-raw.min()), float(raw.max() - 1)) > 1e-5  # what the guard refuses
    x_adv = TorchAttack(kind, threat)(model, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    torch.testing.assert_close(x_adv, raw.clamp(0, 1), rtol=0, atol=1e-6)

    class Far(kind):  # type: ignore[misc, valid-type]
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return images - 0.01

    with pytest.raises(ValueError, match="outside the threat model's"):
        TorchAttack(Far, threat)(model, x, y)
