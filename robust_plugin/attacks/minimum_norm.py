"""``MinimumNorm``: search for the nearest adversarial input of each point, by FAB.

One search gives the robust accuracy at every radius.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import guarded
from robust_plugin.attacks.fab import FabSettings, fab
from robust_plugin.attacks.logits import check_logits, check_pairs
from robust_plugin.attacks.survivors import AllFooled, Survivors
from robust_plugin.copies.fast import fast_copy
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.progress import ProgressOption, check_progress, reporting
from robust_plugin.runtime.values import is_whole
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, check_threat, per_point

# How far beyond the inputs' values the search goes, as a multiple of eps, where the box has no
# bounds or is very wide.
_FARTHEST = 1000


@explain_wrong_calls
@dataclass(frozen=True)
class MinimumNorm:
    """An attack that searches for the nearest adversarial input of each point, by targeted FAB.

    FAB (Croce and Hein 2020) moves each point towards its likeliest wrong classes, one after the
    other, and the nearest adversarial input found counts. The attack returns that input if it lies
    in the ball of the threat model, and the clean input otherwise. ``evaluate`` also uses the
    distances, for the report's security curve (robust accuracy by radius).

    Attributes:
        threat: threat model, with norm Linf or L2.
        targets: number of wrong classes to move towards, the likeliest first.
        steps: number of steps of FAB per target class.
        progress: True for a progress bar of tqdm, or a function that is called with a ``Progress``
            at the start, after each target class and at the end; False to report nothing.

    Raises:
        ValueError: for norm L1, or fewer than one target or step.
    """

    threat: ThreatModel
    targets: int = 9
    steps: int = 100
    progress: ProgressOption = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_progress(self.progress)
        if check_threat(self.threat).norm == "L1":
            raise ValueError("the norm is L1; FAB here moves in Linf and L2.")
        if not all(is_whole(count) and count >= 1 for count in (self.targets, self.steps)):
            raise ValueError(
                f"targets={self.targets!r}, steps={self.steps!r}; legal: at least 1, whole."
            )

    @property
    def name(self) -> str:
        """Name of the attack in reports."""
        return "minimum norm (FAB-T)"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial inputs found in the ball, and clean inputs for other points.

        Args:
            model: network.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].
        """
        return self.search(model, x, y)[0]

    def search(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return adversarial inputs, and the distance of each point to the nearest one found.

        Args:
            model: network.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].

        Returns:
            tuple: the inputs that calling the attack returns, shape [B, ...], and the distances in
            the norm of the threat model, shape [B]. A distance is 0 for a point whose clean input
            is misclassified, and infinite if no adversarial input was found.
        """
        distances = torch.empty(0)

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            nonlocal distances
            with torch.no_grad():
                check_pairs(x, y)
                logits = model(x[:1])
                if isinstance(logits, Tensor) and logits.dim() == 2:
                    logits = logits.expand(len(y), -1)  # all labels are checked
                check_logits(logits, y)
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
        # In a ball of radius 0 no point counts as fooled, so that all stay in the run.
        ball = ThreatModel(self.threat.norm, 0.0)
        points = Survivors(box, box.shrunk(x), y, ball)
        nearest = points.x.clone()
        distances = torch.where(points.robust, torch.inf, 0.0).to(x)
        order = points.logits.sort(dim=1).indices
        targets = min(self.targets, order.shape[1] - 1)
        with reporting(self.progress, self.name, total=targets, unit="target classes") as show:
            for number in range(1, targets + 1):
                try:
                    found, at = fab(points, order[:, -1 - number], FabSettings(self.steps))
                except AllFooled:
                    break
                nearer = (found < distances).nonzero().flatten()
                nearest[nearer], distances[nearer] = at[nearer], found[nearer]
                show(number)
        # Distances are measured on the inputs that are returned, which scaling has rounded.
        nearest = torch.where(per_point(distances > 0, x), box.grown(nearest), x)
        measured = self.threat.norms(nearest - x)
        return nearest, torch.where(distances.isfinite(), measured, distances)
