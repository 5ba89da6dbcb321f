"""Attacks on networks with a custom backward pass, which a traced copy must not lose."""

import logging
from collections.abc import Callable
from typing import Literal

import pyautoattack
import pytest
import torch
from suspect_networks import (  # noqa: E402
    Quantiser,
    Sign,
    cnn,
    digits,
    mlp,
    normed_cnn,
    quantised_relu,
    trained,
)
from torch import Tensor, fx, nn

from robust_plugin import HydraPruner, Report, ThreatModel, evaluate, pgd
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks.minimum_norm import MinimumNorm
from robust_plugin.copies.fast import fast_copy
from robust_plugin.copies.tracing import OwnBackward, refusing_own_backward
from robust_plugin.recipes.evaluate.page import page


class GradientHook(nn.Module):
    """Computes what its layers compute; a hook on a tensor clips the gradient on the way back."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda grad: grad.clamp(-0.01, 0.05))
        return self.layers(x)


def with_module_hook() -> nn.Module:
    """Gradients by the input of its second convolution arrive turned around."""
    model = normed_cnn()
    model[3].register_full_backward_hook(lambda layer, by_input, _: (-by_input[0],))
    return model


SUSPECT: dict[str, tuple[Callable[[], nn.Module], Literal["Linf", "L2"], float]] = {
    "quantised inputs": (lambda: nn.Sequential(Quantiser(8), cnn()), "Linf", 0.12),
    "quantised activations": (lambda: cnn(quantised_relu), "L2", 0.5),
    "quantised, BatchNorm": (lambda: normed_cnn(quantised_relu), "Linf", 0.08),
    "binary": (lambda: mlp(Sign), "Linf", 0.05),
}
HOOKED: dict[str, Callable[[], nn.Module]] = {
    "tensor hook": lambda: GradientHook(normed_cnn()),
    "module hook": with_module_hook,
}


def input_gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    weights = torch.linspace(-1, 1, 10)
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0]


@pytest.mark.parametrize("name", [*SUSPECT, *HOOKED])
def test_a_fast_copy_has_the_networks_own_input_gradient(name: str) -> None:
    model = trained(name, SUSPECT[name][0] if name in SUSPECT else HOOKED[name])
    x = digits(60)[0]
    found, wanted = input_gradient(fast_copy(model, x), x), input_gradient(model, x)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("build", [cnn, normed_cnn], ids=["plain", "BatchNorm"])
def test_an_honest_network_still_has_a_fast_copy(build: Callable[[], nn.Module]) -> None:
    model = trained(build.__name__, build)
    assert isinstance(fast_copy(model, digits(60)[0]), fx.GraphModule)


def test_a_masked_network_with_a_quantiser_keeps_its_backward_pass() -> None:
    model = nn.Sequential(Quantiser(8), cnn())
    model.load_state_dict(trained("quantised inputs", SUSPECT["quantised inputs"][0]).state_dict())
    x = digits(60)[0]
    HydraPruner(model.eval(), 0.3)
    wanted = input_gradient(model, x)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(input_gradient(fast_copy(model, x), x), wanted)


@pytest.mark.parametrize("name", SUSPECT)
def test_no_point_is_more_robust_than_the_library_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("auto-attack"), "disabled", True)
    build, norm, eps = SUSPECT[name]
    model, threat = trained(name, build), ThreatModel(norm, eps)
    x, y = digits(50)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        right = model(x).argmax(1) == y
        x, y = x[right], y[right]
    with torch.random.fork_rng(devices=[]):
        library = pyautoattack.AutoAttack(model, norm=norm, eps=eps, seed=0)
        library.attacks_to_run = ["apgd-ce", "apgd-t"]
        theirs = model(library.run_standard_evaluation(x, y, batch_size=250)[0]).argmax(1) == y
    ours = model(AutoAttack(threat, version="screen", seed=0)(model, x, y)).argmax(1) == y
    assert torch.equal(ours, theirs)
    assert int(theirs.sum()) < 0.9 * len(y)  # a trace leaves all of them standing


@pytest.mark.parametrize("name", SUSPECT)
def test_the_row_says_that_gradients_mislead(name: str) -> None:
    build, norm, eps = SUSPECT[name]
    model, threat = trained(name, build), ThreatModel(norm, eps)
    x, y = digits(60)
    attacks = [pgd(threat, steps=40, keep="best"), MinimumNorm(threat, steps=30)]
    report = evaluate(model, [(x, y)], attacks=attacks)
    assert any("not that of the outputs" in finding for finding in report.findings)
    assert set(report.remarks) == set(report.threats)
    for row in report.threats:
        (line,) = (line for line in str(report).splitlines() if line.startswith(row))
        assert "doubtful, see the findings" in line
    # The search for distances uses the same gradients as PGD, not those of rounding.
    assert report.accuracy("minimum norm (FAB-T)") < report.accuracy() - 0.1


def test_a_row_says_what_another_attack_fooled_beyond_it() -> None:
    model, threat = trained("cnn", cnn), ThreatModel("Linf", 0.1)
    x, y = digits(100)
    report = evaluate(
        model,
        [(x, y)],
        attacks={"nothing": lambda m, x, y: x, "PGD": pgd(threat, steps=20)},
        threat=threat,
    )
    fooled = sum(
        stands and not fell
        for stands, fell in zip(report.flags["nothing"], report.flags["PGD"], strict=True)
    )
    assert fooled > 3
    assert report.remarks == {"nothing": f"PGD fools {fooled} points that it leaves"}


def test_the_page_of_an_evaluation_marks_the_row() -> None:
    flags = {"clean": (True,) * 20, "A": (True,) * 20, "B": (False,) * 20}
    threat = ThreatModel("Linf", 0.1)
    report = Report((0,) * 20, flags, {"A": threat, "B": threat})
    assert "B fools 20 points that it leaves" in page(report, title="t", about="a")


def test_a_trace_refuses_a_function_of_its_own_and_nothing_else() -> None:
    with refusing_own_backward():
        with pytest.raises(OwnBackward, match="_Round is a torch.autograd.Function"):
            fx.symbolic_trace(nn.Sequential(Quantiser(4), nn.Linear(2, 2)))
        assert Quantiser(4)(torch.tensor([0.3])).item() == 0.25  # outside of a trace
        fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert Quantiser(4)(torch.tensor([0.3])).item() == 0.25
