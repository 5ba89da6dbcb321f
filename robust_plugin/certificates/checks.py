"""Checks of bounds: what must hold before a bound counts as a proof.

``checked_margins`` computes lower bounds of margins and raises if they cannot be bounds of the
given network, ``proved`` says which points they prove, and ``check_bounds`` tests a bounding method
on a few points before its first use.
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
from robust_plugin.runtime.tolerances import (
    BOUNDS_BY_TWO_METHODS,
    BOUNDS_OF_THE_NETWORK,
    PROVED_MARGIN,
)
from robust_plugin.runtime.values import check_call
from robust_plugin.threat.model import ThreatModel


def checked_margins(
    bounds: Bounds, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel
) -> Tensor:
    """Return lower bounds of the logit margins f_y - f_j for the model in evaluation mode.

    They are computed in full precision (no TF32) and have no graph. The training mode of each layer
    and the gradients in ``.grad`` are restored.

    Args:
        bounds: the bounding method, such as ``ibp_margins``.
        model: the network, with or without a wrapper such as DDP.
        x: inputs, shape [B, ...], within [low, high].
        y: labels, shape [B].
        threat: threat model; the bounds hold for all inputs that it allows.

    Returns:
        Tensor: the bound for each point and class j, shape [B, classes]; zero at j = y.

    Raises:
        ValueError: for inputs outside [low, high], labels out of range, logits that are not finite
            or of half precision, a network with forward hooks, whatever ``bounds`` itself raises an
            error for, and bounds that cannot be right: at eps = 0 they differ from the network's
            margins, or a bound lies above the margin of the clean input.
    """
    check_call(model, x, y)
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
    """Raise a ValueError if bounds contradict the margins of the network, up to rounding.

    Args:
        margins: lower bounds over the threat model, shape [B, classes]; they must not be above the
            true margins.
        itself: bounds at eps = 0, shape [B, classes]; they must equal the true margins.
        true: the network's margins f_y - f_j at the clean inputs, shape [B, classes].
    """
    size = 1 + true.abs().amax(1, keepdim=True)
    apart, excess = (((itself - true) / size).abs()).max(), (margins - true) / size
    if not apart <= BOUNDS_OF_THE_NETWORK:  # NaN is not the same
        raise ValueError(
            f"at eps = 0 the bounds lie {float(apart):.2g} (relative) away from the network's own "
            "margins, so they are of another network: its code or an attribute has changed since, "
            "or it computes what bounds do not see. Make a new certifier; see which layer it is."
        )
    if bool((excess > BOUNDS_OF_THE_NETWORK).any()):
        raise ValueError(
            f"a bound lies {float((margins - true).max()):.3g} above the margin of the network "
            "itself; these bounds are wrong."
        )


def proved(margins: Tensor, y: Tensor) -> Tensor:
    """Return which points are proved by the given bounds; bool, shape [B].

    A point is proved if its bounds for all other classes are above 0 by more than rounding error. A
    bound that is NaN proves nothing.

    Args:
        margins: lower bounds of the logit margins f_y - f_j, shape [B, classes].
        y: labels, shape [B].

    >>> proved(torch.tensor([[0.0, 0.2], [0.0, -0.1], [0.0, torch.nan]]), torch.zeros(3).long())
    tensor([ True, False, False])
    """
    rounding = PROVED_MARGIN * (1 + margins.abs().amax(1, keepdim=True))
    return (margins > rounding).scatter(1, y[:, None], True).all(1)


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
    """Raise unless a bounding method passes two tests of soundness on a few points.

    The first test: at eps = 0, its bounds must equal the margins f_y - f_j of the network. The
    second test: for each class j, the input after one step of length eps against the gradient of
    f_y - f_j must not have a margin below the bound.

    Args:
        bounds: the bounding method to test.
        model: the network, in evaluation mode.
        x: inputs, shape [B, ...]; two points are enough.
        y: labels, shape [B].
        reference: a bounding method that is known to give the network's margins at eps = 0.
        threat: threat model of the bounds.
        name: name of the bounding method in error messages.

    Raises:
        ValueError: if a test fails; the message says which.
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
        with torch.no_grad():
            worst = _margin(model, threat.project(x - threat.eps * threat.direction(grad), x), y, j)
        if bool((worst < claimed[:, j] - BOUNDS_BY_TWO_METHODS * (1 + claimed[:, j].abs())).any()):
            raise ValueError(
                f"{name} is unsound on this network: an input of the threat model has a margin "
                "below its bound."
            )


def refuse_apart(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise unless two computations of the same margins agree; a NaN counts as a difference.

    Args:
        found: margins to check, shape [B, classes].
        wanted: margins that they should equal, shape [B, classes].
        what: name of ``found``, with which the error message starts.

    Raises:
        ValueError: if they differ by more than rounding explains.
    """
    apart = ((found - wanted).abs() / (1 + wanted.abs().amax(1, keepdim=True))).max()
    if not apart <= BOUNDS_BY_TWO_METHODS:
        raise ValueError(
            f"{what} is {float(apart):.2g} (relative) away from what it should be on this network; "
            "its bounds are not to be believed."
        )


def _margin(model: nn.Module, x: Tensor, y: Tensor, j: int) -> Tensor:
    """Return the logit margin f_y - f_j of each point to the class j, shape [B]."""
    logits: Tensor = model(x)
    return logits.gather(1, y[:, None])[:, 0] - logits[:, j]
