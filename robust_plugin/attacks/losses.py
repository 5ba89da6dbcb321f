"""Losses that attacks ascend, and functions that replace NaN and infinity in input gradients."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_plugin.attacks.contract import NotFiniteGradient
from robust_plugin.threat.model import per_point

AttackLoss = Literal["ce", "kl", "margin", "dlr"]


def soft_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return s = log sum_{j != y} exp(z_j) - z_y, shape [B].

    Cross-entropy is log(1 + exp(s)), which rises with s, so that both have the same direction of
    steepest ascent at every point. The gradient of cross-entropy is smaller by the factor
    sigmoid(s), which underflows for logits that are far apart. The gradient of s has no such
    factor.

    Args:
        logits: logits z, shape [B, classes].
        y: labels, shape [B].
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - true


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return max_{j != y} z_j - z_y, shape [B], positive for misclassified points.

    Carlini and Wagner 2017.

    Args:
        logits: logits z, shape [B, classes].
        y: labels, shape [B].
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - true


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), shape [B].

    Croce and Hein 2020, equation 6; z_(k) is the k-th largest logit.

    Args:
        logits: logits z, shape [B, classes], of at least three classes.
        y: labels, shape [B].
    """
    top = logits.sort(dim=1, descending=True).values
    return margin_loss(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr_loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), shape [B].

    Croce and Hein 2020, equation 7; z_(k) is the k-th largest logit.

    Args:
        logits: logits z, shape [B, classes], of at least four classes.
        y: labels, shape [B].
        target: class t to move towards, shape [B].
    """
    top = logits.sort(dim=1, descending=True).values
    gap = logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])
    return gap.squeeze(1) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def input_gradient(value: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of a scalar with respect to the inputs, with the shape of ``x``.

    Args:
        value: a scalar computed from ``x``.
        x: inputs that require a gradient, shape [B, ...].

    Raises:
        ValueError: if autograd finds no path from ``value`` to ``x``.
    """
    grad = None
    if value.requires_grad:
        (grad,) = torch.autograd.grad(value, x, allow_unused=True)
    if grad is None:
        raise ValueError(
            "the network's outputs do not depend on its inputs by autograd (a detached layer?), "
            "so that no attack by gradients can run; take Square, or mend the network."
        )
    return grad


def finite(grad: Tensor) -> Tensor:
    """Return the input gradient with NaN and infinity replaced, and warn if there were any.

    NaN becomes 0. An infinite value keeps its sign and gets the largest finite magnitude in the
    gradient of the same point, or 1 if all finite values there are 0.

    Args:
        grad: input gradient, shape [B, ...].

    Warns:
        NotFiniteGradient: if a value was NaN or infinite.
    """
    if bool(grad.isfinite().all()):
        return grad
    warn_of_gradients()
    return followable(grad)


def warn_of_gradients() -> None:
    """Issue the warning ``NotFiniteGradient``: an attack met NaN or infinity in a gradient."""
    warnings.warn(
        "the gradient of the outputs by the inputs is NaN or infinite at some inputs (the square "
        "root, norm or logarithm of 0?); attacks by gradients do not see what such an entry does",
        NotFiniteGradient,
        stacklevel=3,
    )


def followable(grad: Tensor) -> Tensor:
    """Return the input gradient with NaN and infinity replaced, without a warning.

    As in ``finite``, NaN becomes 0, and an infinite value gets the largest finite magnitude in the
    gradient of the same point.

    The function does not find out whether there were any, because that would wait for the GPU.

    Args:
        grad: input gradient, shape [B, ...].
    """
    known = grad.nan_to_num(0.0, 0.0, 0.0)
    largest = per_point(known.flatten(1).abs().amax(1), grad)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    return torch.where(grad.isinf(), grad.sign() * largest, known)


def kl_divergence(logits: Tensor, adversarial: Tensor) -> Tensor:
    """Return KL(softmax(logits) || softmax(adversarial)) of each point, shape [B].

    Args:
        logits: logits of the clean inputs, shape [B, classes].
        adversarial: logits of the adversarial inputs, shape [B, classes].
    """
    log_p, log_q = logits.log_softmax(1), adversarial.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
