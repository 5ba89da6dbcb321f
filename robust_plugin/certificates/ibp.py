"""Interval bound propagation (IBP): margins that hold for every input of the threat model.

Sound or absent: a layer or an operation without a rule raises. Differentiable: through masks that
are live, the gradient reaches weights, scores and rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robust_plugin.answers import check_pairs, logits_of
from robust_plugin.guard import attacked, check_logits, innermost
from robust_plugin.precision import exact
from robust_plugin.propagation import Propagation, refuse_unseen
from robust_plugin.threat import ThreatModel, check_threat

# bounds(model, x, y, threat): lower bounds of f_y - f_j, shape [B, classes], zero at j = y.
Bounds = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]

# Bounds are sums in the inputs' precision: margins this small beside the point's largest may be
# rounding, and prove nothing.
_ROUNDING = 1e-5

# Two computations of one margin in float32, relative to 1 + the point's largest: deep networks
# magnify rounding.
_SAME = 1e-3


@dataclass(frozen=True)
class IBP:
    """Proofs by interval bounds: ``certifier(model, x, y) -> bool tensor``.

    Attributes:
        threat: Linf, or L2 by the norms of the first linear layer's rows; eps and bounds.

    Raises:
        TypeError: for a threat that is no threat model.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.eye_(model[0].weight)
    >>> x, y = torch.tensor([[0.8, 0.2], [0.5, 0.4]]), torch.tensor([0, 0])
    >>> IBP(ThreatModel("Linf", eps=0.1))(model, x, y)
    tensor([ True, False])
    """

    threat: ThreatModel

    def __post_init__(self) -> None:
        check_threat(self.threat)

    @property
    def name(self) -> str:
        """The row's name in a report."""
        return "IBP"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return which points are proved, bool of shape [B]."""
        return proved(self.margins(model, x, y), y)

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of f_y - f_j of shape [B, classes] (see ``checked_margins``)."""
        return checked_margins(ibp_margins, model, x, y, self.threat)


def ibp_margins(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Return lower bounds of f_y - f_j over the threat model, with their graph.

    A last linear layer is merged with the differences of its rows, radius |w_y - w_j| r, which is
    tighter than the difference of two bounds (Gowal et al. 2018, section 3). BatchNorm uses its
    running statistics, whatever the mode; in the objectives by bounds, and so inside
    ``clean_pass``, those of the clean batch where it is in training mode.

    Args:
        model: a network of layers and operations that ``rules`` knows.
        x: shape [B, ...], within [low, high].
        y: shape [B].
        threat: Linf or L2; eps and bounds.

    Returns:
        Tensor: shape [B, classes], zero at j = y.

    Raises:
        ValueError: for inputs outside the bounds, labels out of range, or a norm, a layer or an
            operation without a rule.
    """
    check_pairs(x, y)
    with torch.autocast(x.device.type, enabled=False):  # differences of sums, which bfloat16 drowns
        last, z = Propagation(innermost(model), x, threat).last_linear()
        if last is None:
            out = z.box()
            _check_labels(out.centre, y)
            margins = out.lower.gather(1, y[:, None]) - out.upper
        else:
            _check_labels(nn.functional.linear(z.box().centre, last.weight, last.bias), y)
            # [B, classes, features]: one matrix a point, of its label's row less each row.
            rows = last.weight[y][:, None] - last.weight
            shift = 0.0 if last.bias is None else last.bias[y][:, None] - last.bias
            margins = z.linear(_by_point, rows, None).lower + shift
        return margins.scatter(1, y[:, None], 0.0)


def _check_labels(logits: Tensor, y: Tensor) -> None:
    # Bounds of a deep network may overflow; they prove nothing then, and are no error.
    check_logits(logits.detach().nan_to_num(), y)


def _by_point(v: Tensor, rows: Tensor, _: Tensor | None) -> Tensor:
    return torch.einsum("bi,bji->bj", v.expand(len(rows), -1), rows)


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
