"""Interval bound propagation (IBP): margins that hold for every input of the threat model.

Sound or absent: a layer or an operation without a rule raises. Differentiable: through masks that
are live, the gradient reaches weights, scores and rates.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import attacked
from robust_plugin.attacks.logits import logits_of
from robust_plugin.certificates.contract import Bounds
from robust_plugin.certificates.propagation import refuse_unseen
from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.distributed import innermost
from robust_plugin.threat.model import ThreatModel, per_point

# Bounds are sums in the inputs' precision: margins this small beside the point's largest may be
# rounding, and prove nothing.
_ROUNDING = 1e-5


# Two computations of one margin in float32, relative to 1 + the point's largest: deep networks
# magnify rounding.
_SAME = 1e-3


def checked_margins(
    bounds: Bounds, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel
) -> Tensor:
    """Return margins in evaluation mode, without a graph or TF32; the model is left as it was.

    Raises:
        ValueError: for inputs outside the bounds, labels out of range, logits that are not finite
            or of half precision, hooks, whatever ``bounds`` refuses, and bounds that are of another
            network: at eps = 0 they are not its margins, or they lie above them.
    """
    model = innermost(model)
    refuse_unseen(model)
    with attacked(model), torch.no_grad(), exact(x):
        threat.check_inputs(x)
        logits, y = logits_of(model, x, y), y.long()
        if logits.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the network computes in {logits.dtype}, whose rounding is larger than margins; "
                "legal: float32 and float64, such as model.float() on x.float()."
            )
        margins = bounds(model, x, y, threat)
        itself = bounds(model, x, y, replace(threat, eps=0.0))
    _refuse_others(margins, itself, logits.gather(1, y[:, None]) - logits)
    return margins


def _refuse_others(margins: Tensor, itself: Tensor, true: Tensor) -> None:
    """Raise unless bounds at eps = 0 are the network's margins, and none lies above them."""
    size = 1 + true.abs().amax(1, keepdim=True)
    apart, excess = (((itself - true) / size).abs()).max(), (margins - true) / size
    if not apart <= _SAME:  # NaN is not the same
        raise ValueError(
            f"at eps = 0 the bounds lie {float(apart):.2g} (relative) away from the network's own "
            "margins, so they are of another network: its code or an attribute has changed since, "
            "or it computes what bounds do not see. Make a new certifier; see which layer it is."
        )
    if bool((excess > _SAME).any()):
        raise ValueError(
            f"a bound lies {float((margins - true).max()):.3g} above the margin of the network "
            "itself; these bounds are wrong."
        )


def proved(margins: Tensor, y: Tensor) -> Tensor:
    """Return where all margins but the label's own are above rounding; NaN proves nothing.

    Args:
        margins: lower bounds of f_y - f_j, shape [B, classes].
        y: shape [B].

    >>> proved(torch.tensor([[0.0, 0.2], [0.0, -0.1], [0.0, torch.nan]]), torch.zeros(3).long())
    tensor([ True, False, False])
    """
    rounding = _ROUNDING * (1 + margins.abs().amax(1, keepdim=True))
    return (margins > rounding).scatter(1, y[:, None], True).all(1)


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
