"""A trace that would lose a backward pass is refused, and torch is as it was afterwards."""

import inspect

import pytest
import torch
from torch import fx, nn

from robust_plugin.copies.tracing import OwnBackward, refusing_own_backward

APPLY = inspect.getattr_static(torch.autograd.Function, "apply")


class Rounded(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Rounding(nn.Module):
    def forward(self, x):
        return Rounded.apply(x)


def test_a_trace_without_the_guard_loses_the_backward_pass():
    """The reason for the guard; if it fails, torch keeps the pass and the guard can go."""
    x = torch.tensor([0.7], requires_grad=True)
    fx.symbolic_trace(Rounding())(x).sum().backward()
    traced, x.grad = x.grad.clone(), None
    Rounding()(x).sum().backward()
    assert (traced.item(), x.grad.item()) == (0.0, 1.0)


def test_only_a_trace_of_a_function_is_refused():
    with refusing_own_backward():
        with pytest.raises(OwnBackward, match="Rounded is a torch.autograd.Function"):
            fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), Rounding()))
        fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        x = torch.tensor([0.7], requires_grad=True)
        Rounding()(x).sum().backward()  # no trace: forward and backward are its own
        assert x.grad.item() == 1.0


def test_torch_is_as_before_also_after_an_error():
    with refusing_own_backward():
        assert inspect.getattr_static(torch.autograd.Function, "apply") is not APPLY
    assert inspect.getattr_static(torch.autograd.Function, "apply") is APPLY
    with pytest.raises(KeyError), refusing_own_backward():
        raise KeyError
    assert inspect.getattr_static(torch.autograd.Function, "apply") is APPLY
    assert Rounded.apply(torch.tensor(0.7)).item() == 1.0
