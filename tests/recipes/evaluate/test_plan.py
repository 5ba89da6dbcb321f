"""The plan of an evaluation has the numbers of its settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from robust_plugin.recipes.config.schema import EvaluationConfig
from robust_plugin.recipes.evaluate.plan import Plan, plan_of_evaluation, plan_of_run
from robust_plugin.recipes.evaluate.prepared import prepared
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.papers.registry import finished_run


@pytest.mark.usefixtures("at_workplace")
def test_the_plan_of_a_run_is_capped_by_its_points(finished: Path) -> None:
    run = finished_run(finished)
    settings = EvaluationConfig(
        steps=3, restarts=2, autoattack=8, verify=9, smooth=99, votes=50, curve=7, certify="ibp"
    )
    run.config = replace(run.config, evaluation=settings)
    plan = plan_of_run(run)
    assert (plan.points, plan.steps, plan.autoattack) == (32, 6, {"standard": 8})
    assert (plan.verify, plan.smooth, plan.votes) == (9, 32, 50) and plan.certifier is not None
    # four multiples of eps and the whole box, from one random start
    assert (plan.curve, plan.curve_steps) == (7, 5 * 3)
    run.config = replace(run.config, evaluation=EvaluationConfig(curve=0))
    bare = plan_of_run(run)
    assert bare == Plan(points=32, steps=100, votes=10_000, batch_size=500)
    run.config = replace(run.config, evaluation=EvaluationConfig(curve=200))
    assert plan_of_run(run) == replace(bare, curve=32, curve_steps=5 * 20)


def test_the_plan_of_evaluate_has_its_attacks(run: Path) -> None:
    config = replace(of_run(run), n=20, checks=30, attacks=("fab", "autoattack", "screen"))
    plan = plan_of_evaluation(config, prepared(config, None))
    assert plan.autoattack == {"standard": 20, "screen": 20} and plan.steps == 0
    assert plan.search == 160 and plan.checks == 20 and plan.verify == 0
    pgd = replace(config, attacks=("pgd",), steps=7, restarts=3, certify="ibp", checks=5)
    plan = plan_of_evaluation(pgd, prepared(pgd, None))
    assert (plan.steps, plan.search, plan.autoattack, plan.verify) == (21, 0, {}, 20)
    assert plan.checks == 5 and plan.certifier is not None
