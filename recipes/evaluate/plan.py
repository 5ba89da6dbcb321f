"""What an evaluation does, as far as its time depends on it: ``Plan``, made from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks.minimum_norm import MinimumNorm
from robust_plugin.certificates.contract import Certifier
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.evaluate.certifiers import certifier_of
from robust_plugin.recipes.evaluate.prepared import Prepared, methods_of
from robust_plugin.recipes.evaluate.security_curve import points_of_curve, radii_of_curve
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.distributed import rank_and_world


@dataclass(frozen=True)
class Plan:
    """What an evaluation does, as far as its time depends on it.

    Attributes:
        points: number of points that PGD and the search attack.
        steps: number of gradient steps of PGD over all random starts; 0 for no PGD.
        search: number of gradients per point and target class of the search for nearest adversarial
            examples; 0 for no search.
        autoattack: number of points by version of AutoAttack, such as {"standard": 1000}.
        certifier: certifier that tries to prove points; None for none.
        verify: number of points that the certifier is given.
        checks: number of points of the checks for obfuscated gradients.
        smooth: number of points that randomized smoothing certifies.
        votes: number of noisy copies of each of these points.
        curve: number of points of the security curve by PGD.
        curve_steps: number of gradient steps of PGD at all radii of the curve together.
        batch_size: number of points per batch.
        processes: number of processes that share the points of AutoAttack.
    """

    points: int = 0
    steps: int = 0
    search: int = 0
    autoattack: Mapping[str, int] = field(default_factory=dict)
    certifier: Certifier | None = None
    verify: int = 0
    checks: int = 0
    smooth: int = 0
    votes: int = 0
    curve: int = 0
    curve_steps: int = 0
    batch_size: int = 250
    processes: int = 1


def plan_of_evaluation(config: EvaluateConfig, work: Prepared) -> Plan:
    """Return the plan of the command ``evaluate``.

    Args:
        config: settings of the evaluation.
        work: network, points and threat model.
    """
    n: int = len(work.test)  # type: ignore[arg-type]
    # The certifier proves a few other points, which do not belong into the journal.
    attacks, certifier = methods_of(replace(config, journal=None), work.threat)
    searches = [attack for attack in attacks if isinstance(attack, MinimumNorm)]
    has_checks = work.threat.norm != "L1" and work.threat.eps > 0
    return Plan(
        points=n,
        steps=config.steps * config.restarts if "pgd" in config.attacks else 0,
        search=sum(round(1.6 * search.steps) for search in searches),
        autoattack={each.version: n for each in attacks if isinstance(each, AutoAttack)},
        certifier=certifier,
        verify=0 if certifier is None else n,
        checks=min(config.checks, n) if has_checks else 0,
        batch_size=config.batch_size,
        processes=rank_and_world()[1],
    )


def plan_of_run(run: Run) -> Plan:
    """Return the plan of the evaluation at the end of a run."""
    settings, n = run.config.evaluation, len(run.data.test)  # type: ignore[arg-type]
    curve = points_of_curve(run)
    return Plan(
        points=n,
        steps=settings.steps * settings.restarts,
        autoattack={settings.version: min(settings.autoattack, n)} if settings.autoattack else {},
        certifier=certifier_of(
            settings.certify if settings.verify else "none", run.threat, seconds=settings.seconds
        ),
        verify=min(settings.verify, n),
        smooth=min(settings.smooth, n),
        votes=settings.votes,
        curve=curve,
        curve_steps=settings.steps * len(radii_of_curve(run)) if curve else 0,
        batch_size=settings.batch_size,
        processes=rank_and_world()[1],
    )
