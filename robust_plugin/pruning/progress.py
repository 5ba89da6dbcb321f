"""How far a pruner is, besides its masks: what a saved state needs to continue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robust_plugin.budget.control import Schedule


@dataclass
class Progress:
    """How far a pruner is in its phases.

    Attributes:
        schedule: steps of the prune phase that are done, and its length.
        finetune_steps: steps of the fine-tuning phase that are done, if they were counted.
        settled: whether each group keeps its final number of weights or channels, so that no rates
            are learned any more.
        updated: whether the user has called ``update_masks``, as after scores were written by hand.
        loaded_step: the step of the last state that was loaded; None if none was.
    """

    settled: bool
    schedule: Schedule = field(default_factory=Schedule)
    finetune_steps: int = 0
    updated: bool = False
    loaded_step: int | None = None

    @property
    def has_learned(self) -> bool:
        """Whether scores or rates have moved, here or before a state was saved."""
        return self.schedule.step > 0 or self.updated

    @property
    def last(self) -> tuple[str, int]:
        """The last phase that made steps, and how many."""
        if self.finetune_steps:
            return "finetune", self.finetune_steps
        return "prune", self.schedule.step

    def state(self) -> dict[str, Any]:
        """Return what ``load`` needs, as plain JSON data."""
        return {
            "schedule": vars(self.schedule).copy(),
            "finetune_steps": self.finetune_steps,
            "settled": self.settled,
            "updated": self.updated,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned; a length that is known here stays."""
        saved = Schedule(**state["schedule"])
        length = self.schedule if self.schedule.steps else saved
        self.schedule = Schedule(saved.step, length.epochs, length.steps_per_epoch)
        self.finetune_steps = state["finetune_steps"]
        self.settled, self.updated = state["settled"], state["updated"]
        self.loaded_step = saved.step
