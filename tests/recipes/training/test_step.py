"""One optimizer step, over micro-batches, and the ramp of the objective."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import small
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.objectives.by_bounds import Certified
from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.papers.registry import train_recipe
from robust_plugin.recipes.training import step as step_module
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.step import Steps


@pytest.mark.usefixtures("on_planted")
def test_a_certified_loss_moves_with_every_step_by_the_stages_own_ramp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float, float]] = []
    loss = Certified.__call__

    def recorded(self: Certified, *batch: Any) -> Tensor:
        seen.append((self.risen, self.threat.eps, self.kappa[1]))
        return loss(self, *batch)

    monkeypatch.setattr(Certified, "__call__", recorded)
    objective = {"name": "certified", "kappa": [1.0, 0.25], "eps_factor": 1.5}
    stages = {"pretrain": {"epochs": 4, "ramp": 0.5}, "prune": {"epochs": 1, "ramp": 0.0}}
    config = small("hydra", objective=objective, **stages, finetune={"epochs": 1, "lr": 0.01})
    train_recipe("hydra", Run(tmp_path, config))
    pretrain = [min(1.0, step / 6) for step in range(12)]  # half of 4 epochs of 3 steps
    assert [risen for risen, *_ in seen] == pytest.approx([*pretrain, *[1.0] * 6])
    assert {(round(eps, 9), kappa) for _, eps, kappa in seen} == {(round(1.5 * 4 / 255, 9), 0.25)}


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize(
    ("recipe", "learn", "scores"),
    [("gradual", "scores", {0.2}), ("gradual", "rates", set()), ("hydra", None, {0.2})],
)
def test_each_stage_has_its_own_regularizers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    learn: str | None,
    scores: set[float],
) -> None:
    """Scores are perturbed where they are learned, weights where they train, after pre-training."""
    stage = [""]
    perturbed_in: dict[str, set[float]] = {}
    taught: dict[str, set[float]] = {}
    enter = Run.enter

    def entered(run: Run, name: str, *rest: Any) -> None:
        stage[0] = name
        perturbed_in[name], taught[name] = set(), set()
        enter(run, name, *rest)

    def perturbed(objective: Any, *, gamma: float) -> Any:
        perturbed_in[stage[0]].add(gamma)
        return objective

    def distilled(objective: Any, teacher: nn.Module, *, weight: float) -> Any:
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        taught[stage[0]].add(weight)
        return objective

    monkeypatch.setattr(Run, "enter", entered)
    monkeypatch.setattr(step_module, "perturbed", perturbed)
    monkeypatch.setattr(step_module, "distilled", distilled)
    own = {"distill": 0.4, "weight_perturbation": 0.1, "score_perturbation": 0.2}
    more = {} if learn is None else {"learn": learn}
    train_recipe(recipe, Run(tmp_path, small(recipe, regularizers=own, **more)))
    weights = {name: {0.1} for name in perturbed_in if name in ("shrink", "finetune")}
    assert perturbed_in == {"pretrain": set(), "prune": scores, **weights}
    after = {name: {0.4} for name in taught if name != "pretrain"}
    assert taught == {"pretrain": set(), **after}


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_is_sgd_on_the_mean_over_the_whole_batch(tmp_path: Path, count: int) -> None:
    run = Run(tmp_path, small("hydra", objective={"name": "benign"}, accumulate=count))
    model = run.fresh_model().eval()  # BatchNorm would normalize over each micro-batch
    x, y = (torch.stack(each)[:5] for each in zip(*run.data.train, strict=True))
    expected = copy.deepcopy(model)
    loss = F.cross_entropy(expected(x), y)
    gradients = torch.autograd.grad(loss, list(expected.parameters()))
    stage = StageConfig(lr=0.1, momentum=0.0, weight_decay=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = Steps(run, model, optimizer=optimizer, pruner=None, stage=stage, seed=0)
    assert steps(x, y, len(x)) == pytest.approx(loss.item(), rel=1e-5)
    for new, old, gradient in zip(
        model.parameters(), expected.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(new, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)
