"""Interval bound propagation (IBP): lower bounds of margins for all inputs of the threat model.

A layer or operation without a rule raises an error, so no bound is unsound. The bounds are
differentiable: with a pruner attached, their gradient reaches the weights, the mask scores and the
learned density of each layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import check_logits, check_pairs
from robust_plugin.certificates.checks import checked_margins, proved
from robust_plugin.certificates.propagation import Propagation
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import innermost
from robust_plugin.runtime.values import check_call
from robust_plugin.threat.model import ThreatModel, check_threat


@explain_wrong_calls
@dataclass(frozen=True)
class IBP:
    """Certifier by interval bounds: ``certifier(model, x, y)`` returns which points are proved.

    Attributes:
        threat: threat model with norm Linf or L2. For L2, the bounds of the first linear or
            convolution layer use the L2 norms of its weight rows, and all later layers intervals.

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
        """The certifier's name in a report."""
        return "IBP"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return which points are proved; bool, shape [B]."""
        return proved(self.margins(model, x, y), y.long())

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of the logit margins f_y - f_j, shape [B, classes].

        Arguments, checks and errors are those of ``checked_margins`` in ``checks.py``.
        """
        return checked_margins(ibp_margins, model, x, y, self.threat)


@explain_wrong_calls
def ibp_margins(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Return differentiable lower bounds of the logit margins f_y - f_j over the threat model.

    If the last layer is linear, each margin is bounded as one linear map with the weights w_y -
    w_j. Its radius is ``|w_y - w_j| r``, with r the radius of the layer's inputs, which is tighter
    than the difference of the bounds of f_y and f_j (Gowal et al. 2018, section 3). BatchNorms use
    their running statistics, in training mode too. Only inside ``clean_pass`` (training by bounds),
    a BatchNorm in training mode uses the statistics of the clean batch.

    Args:
        model: a network whose layers and operations all have a rule in ``rules.py`` or
            ``operations.py``.
        x: inputs, shape [B, ...], within [low, high].
        y: labels, shape [B].
        threat: threat model with norm Linf or L2.

    Returns:
        Tensor: the bound for each point and class j, shape [B, classes]; zero at j = y.

    Raises:
        ValueError: for inputs outside [low, high], labels out of range, or a norm, layer or
            operation without a rule.
    """
    check_call(model, x, y)
    check_pairs(x, y)
    y = y if y.is_floating_point() else y.long()  # floats are refused below
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
    """Return rows[b] @ v[b] for each point b; shape [B, classes].

    Args:
        v: inputs of the last layer, shape [B, features], or [1, features] if they are the same for
            all points.
        rows: one weight matrix per point, shape [B, classes, features].
    """
    return torch.einsum("bi,bji->bj", v.expand(len(rows), -1), rows)
