"""The straightforward version of a training step with learned masks, as in the official code.

Every layer sorts its scores in every forward pass, and the objectives compute each output anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.recipes.models.networks import resnet18

DENSITY = 0.1
EPS, STEP_SIZE, STEPS, BETA = 8 / 255, 2 / 255, 10, 6.0


class SortedMask(torch.autograd.Function):
    """Mask with ones at the largest entries, found by a full sort; its gradient is the identity."""

    @staticmethod
    def forward(ctx, magnitudes: Tensor, density: float) -> Tensor:
        flat = magnitudes.flatten()
        order = flat.sort().indices
        pruned = int((1 - density) * flat.numel())
        mask = torch.empty_like(flat)
        mask.scatter_(0, order[:pruned], 0.0)
        mask.scatter_(0, order[pruned:], 1.0)
        return mask.view_as(magnitudes)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class SortingConv2d(nn.Conv2d):
    """A convolution that computes its mask anew in every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        mask = SortedMask.apply(self.scores.abs(), DENSITY)
        return self._conv_forward(x, self.weight * mask, self.bias)


class SortingLinear(nn.Linear):
    """A linear layer that computes its mask anew in every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        mask = SortedMask.apply(self.scores.abs(), DENSITY)
        return F.linear(x, self.weight * mask, self.bias)


def straightforward_network(width: int) -> nn.Module:
    return straightforward(resnet18(10, (3, 32, 32), width=width))


def straightforward(model: nn.Module) -> nn.Module:
    """Give each convolution and linear layer scores; only scores and normalization layers train."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            fan_in = weight[0].numel()
            module.scores = nn.Parameter((6 / fan_in) ** 0.5 * weight / weight.abs().max())
            module.weight.requires_grad_(False)
            if module.bias is not None:
                module.bias.requires_grad_(False)
            module.__class__ = SortingConv2d if isinstance(module, nn.Conv2d) else SortingLinear
    return model


def kl(clean: Tensor, robust: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(robust, 1), F.softmax(clean, 1), reduction="batchmean")


def climb(model: nn.Module, x: Tensor, x_adv: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    model.eval()
    for _ in range(STEPS):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(loss(x_adv), [x_adv])
        x_adv = x_adv.detach() + STEP_SIZE * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    return x_adv


def straightforward_trades(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """TRADES in 24 forward passes: two per attack step, three in the loss, one for the log."""
    start = x + 0.001 * torch.randn_like(x)
    x_adv = climb(model, x, start, lambda z: kl(model(x), model(z)))
    loss = F.cross_entropy(model(x), y) + BETA * kl(model(x), model(x_adv))
    (model(x).argmax(1) == y).float().mean().item()
    return loss


def straightforward_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    start = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    x_adv = climb(model, x, start, lambda z: F.cross_entropy(model(z), y))
    return F.cross_entropy(model(x_adv), y)
