"""The security curve of a run: accuracy of a network under PGD at several radii.

It is measured on the first test points, at the end of a run: of the pruned network together with
its evaluation, and of the dense network with ``before_after.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn
from torch.utils.data import Subset

from robust_plugin.evaluation.curve import SecurityCurve
from robust_plugin.evaluation.obfuscated_gradients import whole_box
from robust_plugin.recipes.evaluate.measure import measure, strongest_pgd
from robust_plugin.recipes.pages.security_curve import FACTORS, CurveUnderPGD
from robust_plugin.recipes.training.run import Run

# Name under which the measurement reports its progress.
CURVE_TASK = "security curve"


def points_of_curve(run: Run) -> int:
    """Return the number of test points of a run's security curve; 0 for no curve.

    Without a radius (eps = 0) there is no curve.
    """
    n: int = len(run.data.test)  # type: ignore[arg-type]
    return min(run.config.evaluation.curve, n) if run.threat.eps > 0 else 0


def radii_of_curve(run: Run) -> tuple[float, ...]:
    """Return the radii that PGD attacks at, in input units, from the smallest to the largest.

    They are the multiples of eps in the plot, and the radius of the whole box if that is more: at
    this radius, accuracy must fall to nothing.
    """
    radii = [factor * run.threat.eps for factor in FACTORS if factor]
    box = whole_box(run.threat, run.example).eps
    return (*radii, box) if box > radii[-1] else tuple(radii)


def measured_curve(run: Run, model: nn.Module, *, name: str = "") -> CurveUnderPGD | None:
    """Measure the security curve of a network on the first test points of a run.

    PGD attacks at each radius with ``evaluation.steps`` steps from one random start. A point counts
    as robust at a radius if PGD has fooled it neither there nor at a smaller radius. The same
    settings give the same curve.

    Args:
        run: run whose test points, threat model and settings are used.
        model: the network.
        name: what the progress says before the name of the task.

    Returns:
        CurveUnderPGD: the curve; None if the settings ask for none.
    """
    settings, n = run.config.evaluation, points_of_curve(run)
    if n == 0:
        return None
    radii = radii_of_curve(run)
    attacks = {
        f"{radius:g}": strongest_pgd(
            run.threat.with_radius(radius), steps=settings.steps, restarts=1
        )
        for radius in radii
    }
    report = measure(
        model,
        Subset(run.data.test, range(n)),
        attacks=attacks,
        seed=run.config.seed,
        batch_size=settings.batch_size,
        progress=lambda now: run.progress(replace(now, task=f"{name}{CURVE_TASK}")),
    )
    stands = zip(*(report.flags[radius] for radius in attacks), strict=True)
    distances = tuple(
        next((radius for radius, right in zip(radii, each, strict=True) if not right), math.inf)
        if clean
        else 0.0
        for clean, each in zip(report.flags["clean"], stands, strict=True)
    )
    attack = next(iter(attacks.values())).name
    return CurveUnderPGD(
        attack, run.threat.eps, radii[-1], SecurityCurve(run.threat.norm, distances)
    )
