"""Interval bound propagation (IBP): margins that hold for every input of the threat model.

Sound or absent: a layer or an operation without a rule raises. Differentiable: through masks that
are live, the gradient reaches weights, scores and rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import check_logits, check_pairs
from robust_plugin.certificates.checks import checked_margins, proved
from robust_plugin.certificates.propagation import Propagation
from robust_plugin.runtime.distributed import innermost
from robust_plugin.threat.model import ThreatModel, check_threat


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
