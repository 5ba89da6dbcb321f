"""Losses of attacks against their formulas, and the repair of gradients that are not finite."""

import pytest
import torch
from attack_formulas import attack_loss
from torch.nn import functional as F

from robust_plugin.attacks.contract import NotFiniteGradient
from robust_plugin.attacks.losses import (
    dlr_loss,
    finite,
    followable,
    input_gradient,
    kl_divergence,
    margin_loss,
    soft_margin,
    targeted_dlr_loss,
)


@pytest.mark.parametrize("name", ["ce", "margin", "dlr", "kl"])
def test_losses_equal_their_formulas(name):
    logits, clean = torch.randn(12, 5).double() * 3, torch.randn(12, 5).double() * 3
    y = torch.randint(5, (12,))
    function = {
        "ce": lambda: F.cross_entropy(logits, y, reduction="none"),
        "margin": lambda: margin_loss(logits, y),
        "dlr": lambda: dlr_loss(logits, y),
        "kl": lambda: kl_divergence(clean, logits),
    }[name]
    assert function().tolist() == pytest.approx(attack_loss(name, logits, y, clean), rel=1e-9)


def test_the_soft_margin_has_the_gradient_of_cross_entropy_but_for_a_factor() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(50, 7, dtype=torch.double), torch.randint(7, (50,))
    logits.requires_grad_()
    (by_loss,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    (by_margin,) = torch.autograd.grad(soft_margin(logits, y).sum(), logits)
    sigmoid = soft_margin(logits, y).sigmoid()[:, None]
    torch.testing.assert_close(by_loss, sigmoid * by_margin, rtol=1e-12, atol=1e-12)
    loss = F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(F.softplus(soft_margin(logits, y)), loss, rtol=1e-12, atol=1e-12)


def test_what_is_not_finite_in_a_gradient_is_replaced() -> None:
    nan, inf = float("nan"), float("inf")
    grad = torch.tensor([[1.0, -3.0, nan], [inf, 2.0, -inf], [nan, nan, -inf], [1.0, 2.0, 3.0]])
    with pytest.warns(NotFiniteGradient):
        found = finite(grad)
    wanted = [[1.0, -3.0, 0.0], [2.0, 2.0, -2.0], [0.0, 0.0, -1.0], [1.0, 2.0, 3.0]]
    assert found.tolist() == wanted
    assert finite(grad[3:]) is not None and torch.equal(finite(grad[3:]), grad[3:])


def test_targeted_dlr_equals_its_formula():
    logits, y = 3 * torch.randn(12, 6).double(), torch.randint(6, (12,))
    target = (y + 1 + torch.arange(12) % 5) % 6
    wanted = []
    for z, label, other in zip(logits.tolist(), y.tolist(), target.tolist(), strict=True):
        top = sorted(z, reverse=True)
        wanted.append(-(z[label] - z[other]) / (top[0] - (top[2] + top[3]) / 2))
    assert targeted_dlr_loss(logits, y, target).tolist() == pytest.approx(wanted, rel=1e-9)


def test_input_gradients_that_autograd_does_not_know_are_refused():
    x = torch.rand(3, 2).requires_grad_()
    assert torch.equal(input_gradient((x * x).sum(), x), 2 * x)
    for value in ((x.detach() * 2).sum(), torch.ones(2, requires_grad=True).sum()):
        with pytest.raises(ValueError, match="outputs do not depend on its inputs by autograd"):
            input_gradient(value, x)


def test_followable_equals_finite_without_its_warning(recwarn):
    grad = torch.tensor([[torch.nan, -torch.inf], [0.5, torch.inf], [0.25, -2.0]])
    assert followable(grad).tolist() == [[0.0, -1.0], [0.5, 0.5], [0.25, -2.0]]
    assert len(recwarn) == 0
