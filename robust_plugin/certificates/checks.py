"""Checks of bounds: what must hold before a bound counts as a proof.

``checked_margins`` computes margins and refuses bounds that are of another network, ``proved``
says which points they prove, and ``check_bounds`` tests a bounding method on a few points before
its first use.
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
from robust_plugin.threat.model import ThreatModel, per_point


def checked_margins(
    bounds: Bounds, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel
) -> Tensor:
    """Return lower bounds of f_y - f_j for the model in evaluation mode, without a graph or TF32.

    The model's modes and gradients are restored.

    Args:
        bounds: the bounding method.
        model: the network, wrapped or not.
        x: inputs, shape [B, ...], within [low, high].
        y: labels, shape [B].
        threat: threat model that the margins hold for.

    Returns:
        Tensor: shape [B, classes], zero at j = y.

    Raises:
        ValueError: for inputs outside [low, high], labels out of range, logits that are not finite
            or of half precision, forward hooks, everything that ``bounds`` refuses, and bounds of
            another network: at eps = 0 they differ from the network's margins, or a bound lies
            above the margin of the clean input.
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
    """Raise unless the bounds can be those of this network.

    Args:
        margins: bounds over the threat model, shape [B, classes]; at most the true margins.
        itself: bounds at eps = 0, shape [B, classes]; equal to the true margins.
        true: the network's margins at the clean inputs, shape [B, classes].
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
    """Return whether each point is proved; bool, shape [B].

    A point is proved if its margins to all other classes are above rounding error. NaN proves
    nothing.

    Args:
        margins: lower bounds of f_y - f_j, shape [B, classes].
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

    At eps = 0 its bounds must equal the network's margins. And for each class j, one step of length
    eps against the gradient of f_y - f_j must not give a margin below the bound.

    Args:
        bounds: the bounding method to test.
        model: the network, in evaluation mode.
        x: inputs, shape [B, ...]; two points are enough.
        y: labels, shape [B].
        reference: another bounding method, whose bounds at eps = 0 equal the network's margins.
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
        length = per_point(threat.norms(grad).clamp(min=1e-12), grad)
        step = grad.sign() if threat.norm == "Linf" else grad / length
        with torch.no_grad():
            worst = _margin(model, threat.project(x - threat.eps * step, x), y, j)
        if bool((worst < claimed[:, j] - BOUNDS_BY_TWO_METHODS * (1 + claimed[:, j].abs())).any()):
            raise ValueError(
                f"{name} is unsound on this network: an input of the threat model has a margin "
                "below its bound."
            )


def refuse_apart(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise unless two computations of the same margins agree; NaN agrees with nothing.

    Args:
        found: margins to check, shape [B, classes].
        wanted: margins that they should equal, shape [B, classes].
        what: name of ``found`` in the error message.

    Raises:
        ValueError: if they differ by more than rounding explains; the message starts with ``what``.
    """
    apart = ((found - wanted).abs() / (1 + wanted.abs().amax(1, keepdim=True))).max()
    if not apart <= BOUNDS_BY_TWO_METHODS:
        raise ValueError(
            f"{what} is {float(apart):.2g} (relative) away from what it should be on this network; "
            "its bounds are not to be believed."
        )


def _margin(model: nn.Module, x: Tensor, y: Tensor, j: int) -> Tensor:
    """Return f_y - f_j of each point, shape [B]."""
    logits: Tensor = model(x)
    return logits.gather(1, y[:, None])[:, 0] - logits[:, j]
