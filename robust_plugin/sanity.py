"""What makes robust accuracy too high without robustness: checks of a network before attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugin.attachment import held_weights
from robust_plugin.attacks import margin_loss
from robust_plugin.precision import exact

# Points that are looked at, and the length of the step along the gradient, in input units.
_POINTS = 32
_STEP = 1e-3
# The loss should grow along its gradient as the gradient says; rounding and kinks leave room.
_AGREE = (0.5, 2.0)


class SuspectNetwork(UserWarning):
    """An attack that is called by itself, on a network that attacks do not see through."""


def findings(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """Return what looks wrong, in sentences; nothing for a network that gradients attack fairly.

    Outputs that are probabilities, logits that autograd does not connect to the inputs, gradients
    that are exactly zero, and gradients that are not those of the function (a detached layer, a
    backward pass of its own). Checked on the first points, in evaluation mode.

    Args:
        model: in evaluation mode.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
    """
    x, y = x[:_POINTS].detach().clone(), y[:_POINTS]
    with torch.enable_grad():
        logits = model(x.requires_grad_())
        found = _probabilities(logits.detach())
        gradient = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(margin_loss(logits, y).sum(), x, allow_unused=True)
    if gradient is None:
        return [
            *found,
            "the outputs do not depend on the inputs by autograd (a detached layer?); attacks by "
            "gradients see nothing",
        ]
    size = gradient.flatten(1).norm(dim=1)
    zero = int((size == 0).sum())
    if zero:
        found.append(
            f"the gradient is exactly zero at {zero} of {len(x)} points; attacks by gradients see "
            "nothing there"
        )
    if x.dtype not in (torch.float32, torch.float64):
        found.append(
            f"the network computes in {x.dtype}, whose rounding hides small steps from attacks; "
            "evaluate model.float()"
        )
    elif zero < len(x):
        found += _disagreement(model, x.detach(), y, gradient, size)
    return found


def _probabilities(logits: Tensor) -> list[str]:
    sums_to_one = torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4)
    if bool((logits >= 0).all()) and sums_to_one:
        return [
            "the outputs look like probabilities; return logits, or gradients vanish and the "
            "robust accuracy is too high"
        ]
    return []


def _disagreement(
    model: nn.Module, x: Tensor, y: Tensor, gradient: Tensor, size: Tensor
) -> list[str]:
    """Compare the slope along the gradient, by central differences, with the gradient's length."""
    rows = size > 0
    x, y, size = x[rows], y[rows], size[rows]
    step = _STEP * gradient[rows] / size.view(-1, *[1] * (x.dim() - 1))
    with torch.no_grad(), exact(x):  # TF32 rounds such a step away
        ahead, behind = (margin_loss(model(x + way * step), y) for way in (1, -1))
    ratio = (ahead - behind) / (2 * _STEP) / size
    wrong = int(((ratio < _AGREE[0]) | (ratio > _AGREE[1])).sum())
    if 2 * wrong <= len(x):
        return []
    return [
        f"the gradient is not that of the outputs at {wrong} of {len(x)} points (a detached "
        "branch, or a backward pass of its own?); attacks by gradients are misled"
    ]


def is_random(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Return whether a second forward pass gives other logits than the first one's."""
    with held_weights(model):
        again = model(x)
    return not torch.allclose(again, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def refuse_random(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Raise if a second forward pass gives other logits.

    Raises:
        ValueError: naming what to look for.
    """
    if is_random(model, x, logits):
        raise ValueError(
            "the model gives different logits for the same input in evaluation mode; attacks and "
            "figures would measure noise. Look for dropout or noise that ignores model.eval(); "
            'for a network that is random on purpose there is AutoAttack(threat, version="rand").'
        )
