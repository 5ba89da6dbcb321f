"""Interval bound propagation (IBP): margins that hold for every input of the threat model.

A layer or operation without a rule raises an error, so there is no unsound bound. The margins are
differentiable: with a pruner attached, their gradient reaches weights, scores and rates.
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
        threat: threat model with norm Linf or L2. In L2, the first linear layer uses the norms of
            its rows, and all later layers use intervals.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.

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
        """Return whether each point is proved; bool, shape [B]."""
        return proved(self.margins(model, x, y), y)

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of f_y - f_j of shape [B, classes] (see ``checked_margins``)."""
        return checked_margins(ibp_margins, model, x, y, self.threat)


def ibp_margins(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Return differentiable lower bounds of f_y - f_j over the threat model.

    If the last layer is linear, the margin f_y - f_j is computed as one linear map w_y - w_j of
    radius ``|w_y - w_j| r``, which is tighter than the difference of two bounds (Gowal et al. 2018,
    section 3). BatchNorm uses its running statistics in either mode, except inside ``clean_pass``
    (training by bounds), where a BatchNorm in training mode uses those of the clean batch.

    Args:
        model: a network whose layers and operations all have a rule in ``rules.py``.
        x: inputs, shape [B, ...], within [low, high].
        y: labels, shape [B].
        threat: threat model with norm Linf or L2.

    Returns:
        Tensor: shape [B, classes], zero at j = y.

    Raises:
        ValueError: for inputs outside [low, high], labels out of range, or a norm, layer or
            operation without a rule.
    """
    check_pairs(x, y)
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse here
        last, z = Propagation(innermost(model), x, threat).last_linear()
        if last is None:
            out = z.box()
            _check_labels(out.centre, y)
            margins = out.lower.gather(1, y[:, None]) - out.upper
        else:
            _check_labels(nn.functional.linear(z.box().centre, last.weight, last.bias), y)
            # Shape [B, classes, features]: one matrix per point, its row j is w_y - w_j.
            rows = last.weight[y][:, None] - last.weight
            shift = 0.0 if last.bias is None else last.bias[y][:, None] - last.bias
            margins = z.linear(_by_point, rows, None).lower + shift
        return margins.scatter(1, y[:, None], 0.0)


def _check_labels(logits: Tensor, y: Tensor) -> None:
    # Bounds of a deep network may overflow. They prove nothing then, but are not an error.
    check_logits(logits.detach().nan_to_num(), y)


def _by_point(v: Tensor, rows: Tensor, _: Tensor | None) -> Tensor:
    """Return rows[b] @ v[b] for each point b; shape [B, classes]."""
    return torch.einsum("bi,bji->bj", v.expand(len(rows), -1), rows)
