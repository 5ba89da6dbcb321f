"""Self-checks of bounds: what must hold before the first of them is believed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from robust_plugin.bounds import Bounds
from robust_plugin.threat import ThreatModel, per_point

# Two computations of one bound in float32, relative to 1 + the point's largest.
_AGREE = 1e-4


def check_bounds(
    bounds: Bounds,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    reference: Bounds,
    threat: ThreatModel,
    name: str,
) -> None:
    """Raise unless bounds hold at the centre and at the worst corners of a few points.

    At eps = 0 they are the network's own margins. At the point of the ball that is worst for a
    margin by its gradient, that margin is not below its bound.

    Args:
        bounds: what is checked.
        model: in evaluation mode.
        x: shape [B, ...]; two points do.
        y: shape [B].
        reference: bounds that equal the network's margins at eps = 0, computed another way.
        threat: norm, eps and bounds.
        name: what errors call the bounds.

    Raises:
        ValueError: saying what does not hold.
    """
    nothing = replace(threat, eps=0.0)
    with torch.no_grad():
        found = bounds(model, x, y, nothing)
        refuse_apart(found, reference(model, x, y, nothing), f"{name} at eps = 0")
        claimed = bounds(model, x, y, threat)
    for j in range(claimed.shape[1]):
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            (grad,) = torch.autograd.grad(_margin(model, leaf, y, j).sum(), leaf)
        length = per_point(threat.norms(grad).clamp(min=1e-12), grad)
        step = grad.sign() if threat.norm == "Linf" else grad / length
        with torch.no_grad():
            worst = _margin(model, threat.project(x - threat.eps * step, x), y, j)
        if bool((worst < claimed[:, j] - _AGREE * (1 + claimed[:, j].abs())).any()):
            raise ValueError(
                f"{name} is unsound on this network: an input of the threat model has a margin "
                "below its bound."
            )


def refuse_apart(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise unless two computations of the same margins agree; NaN agrees with nothing.

    Raises:
        ValueError: naming ``what`` was found.
    """
    apart = ((found - wanted).abs() / (1 + wanted.abs().amax(1, keepdim=True))).max()
    if not apart <= _AGREE:
        raise ValueError(
            f"{what} is {float(apart):.2g} (relative) away from what it should be on this network; "
            "its bounds are not to be believed."
        )


def _margin(model: nn.Module, x: Tensor, y: Tensor, j: int) -> Tensor:
    logits: Tensor = model(x)
    return logits.gather(1, y[:, None])[:, 0] - logits[:, j]
