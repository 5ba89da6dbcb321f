"""The nearest adversarial input of each point, by FAB: one attack for every radius."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import guarded
from robust_plugin.attacks.fab import FabSettings, fab
from robust_plugin.attacks.logits import check_logits
from robust_plugin.attacks.survivors import AllFooled, Standing
from robust_plugin.copies.fast import fast_copy
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, per_point

# In a box without bounds, or very wide, how far beyond the inputs' values it looks, in radii.
_FARTHEST = 1000


@dataclass(frozen=True)
class MinimumNorm:
    """FAB towards each of the likeliest classes (Croce and Hein 2020); the nearest result counts.

    As an attack it returns that input where it lies in the ball, and the clean one elsewhere;
    ``evaluate`` also takes the distances, for the report's security curve.

    Attributes:
        threat: norm (Linf or L2), eps and bounds.
        targets: how many wrong classes, from the likeliest.
        steps: projections towards each.

    Raises:
        ValueError: for another norm, or fewer than one target or step.
    """

    threat: ThreatModel
    targets: int = 9
    steps: int = 100

    def __post_init__(self) -> None:
        if self.threat.norm == "L1":
            raise ValueError("the norm is L1; FAB here moves in Linf and L2.")
        if min(self.targets, self.steps) < 1:
            raise ValueError(f"targets={self.targets}, steps={self.steps}; legal: at least 1.")

    @property
    def name(self) -> str:
        """The row's name in a report."""
        return "minimum norm (FAB-T)"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial inputs of the shape of ``x``."""
        return self.search(model, x, y)[0]

    def search(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return adversarial inputs, and how far each point has to move.

        Returns:
            tuple: shapes [B, ...] and [B]; 0 where it is misclassified as it is, infinite where
            no adversarial input was found.
        """
        distances = torch.empty(0)

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            nonlocal distances
            with torch.no_grad():
                check_logits(model(x[:1]), y[:1])
            nearest, distances = self._nearest(model, x, y)
            inside = (distances <= self.threat.eps).nonzero().flatten()
            x_adv = x.clone()
            x_adv[inside] = nearest[inside]
            return x_adv

        x_adv = guarded(run, self.threat)(model, x, y)
        return x_adv, distances

    def _nearest(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        spread = float(x.max() - x.min())
        reach = max(_FARTHEST * self.threat.eps, spread)
        box = UnitBox(fast_copy(model, x), self.threat, x, reach=reach)
        # In a ball of radius 0 nobody is fooled, and nobody leaves the run.
        ball = ThreatModel(self.threat.norm, 0.0)
        points = Standing(box, box.shrunk(x), y, ball)
        nearest = points.x.clone()
        distances = torch.where(points.robust, torch.inf, 0.0).to(x)
        order = points.logits.sort(dim=1).indices
        for place in range(2, min(self.targets + 1, order.shape[1]) + 1):
            try:
                found, at = fab(points, order[:, -place], FabSettings(self.steps))
            except AllFooled:
                break
            nearer = (found < distances).nonzero().flatten()
            nearest[nearer], distances[nearer] = at[nearer], found[nearer]
        # The distance of the input as it is given back, rounding included.
        nearest = torch.where(per_point(distances > 0, x), box.grown(nearest), x)
        measured = self.threat.norms(nearest - x)
        return nearest, torch.where(distances.isfinite(), measured, distances)
