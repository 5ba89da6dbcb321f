"""Settings of a recipe that trains in under a second, and ways to watch or stop a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.papers.registry import RECIPES
from robust_plugin.recipes.training import step
from robust_plugin.recipes.training.objective import build_objective

SMALL: dict[str, Any] = {
    "model": "tiny_networks:net",
    "data": {"batch_size": 16},
    "threat": {"eps": "4/255"},
    "objective": {"steps": 2},
    "pretrain": {"epochs": 3, "lr": 0.1},
    "prune": {"epochs": 2, "lr": 0.2},
    "finetune": {"epochs": 4, "lr": 0.05},
    "evaluation": {"steps": 2, "restarts": 1, "autoattack": 0, "curve": 0},
    "device": "cpu",
    "threads": 1,
}


def small(recipe: str, **settings: Any) -> Any:
    return build(RECIPES[recipe].config, {**SMALL, **settings}, where="test")


@contextmanager
def recorded_steps() -> Iterator[list[list[float]]]:
    """The learning rates of the optimizer steps inside, one list per step."""
    seen: list[list[float]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    try:
        yield seen
    finally:
        handle.remove()


CERTIFIED = ("--objective.name=certified", "--objective.kappa", "1.0", "0.5", "--prune.ramp=0.5")


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Interrupt the next run as Ctrl-C does, at the loss after ``batches`` batches."""
    left = [batches]

    def interrupted(config: ObjectiveConfig, threat: Any, **schedule: Any) -> Any:
        objective = build_objective(config, threat, **schedule)

        def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return objective(model, x, y)

        if hasattr(objective, "progress"):
            loss.progress = objective.progress  # type: ignore[attr-defined]
        return loss

    monkeypatch.setattr(step, "build_objective", interrupted)
