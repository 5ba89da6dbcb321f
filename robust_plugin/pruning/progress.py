"""How far a pruner is, besides its masks: what a saved state needs to continue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robust_plugin.budget.control import PhaseSteps


@dataclass
class Progress:
    """How far a pruner is in its phases.

    Attributes:
        shrink: steps of the shrink phase that are done, and its length.
        prune: steps of the prune phase that are done, and its length.
        finetune_steps: steps of the fine-tuning phase that are done, if they were counted.
        settled: whether each group keeps its final number of weights or channels, so that no rates
            are learned any more.
        shrunk: whether shrinking is over, or there is none.
        most: number of weights or channels that each group kept when shrinking ended; empty before
            that, and if a group may keep all of them.
        updated: whether the user has called ``update_masks``, as after scores were written by hand.
        loaded_step: the step of the last state that was loaded; None if none was.
    """

    settled: bool
    prune: PhaseSteps = field(default_factory=PhaseSteps)
    finetune_steps: int = 0
    updated: bool = False
    loaded_step: int | None = None
    shrink: PhaseSteps = field(default_factory=PhaseSteps)
    shrunk: bool = True
    most: tuple[int, ...] = ()

    @property
    def has_learned(self) -> bool:
        """Whether scores or rates have moved, here or before a state was saved."""
        return self.prune.step > 0 or self.updated

    @property
    def last(self) -> tuple[str, int]:
        """The last phase that made steps, and how many.

        Once shrinking is over, it is the prune phase with 0 steps, until one is made.
        """
        if self.finetune_steps:
            return "finetune", self.finetune_steps
        if self.prune.step or self.shrunk:
            return "prune", self.prune.step
        return "shrink", self.shrink.step

    def state(self) -> dict[str, Any]:
        """Return what ``load`` needs, as plain JSON data."""
        return {
            "shrink": vars(self.shrink).copy(),
            "prune": vars(self.prune).copy(),
            "finetune_steps": self.finetune_steps,
            "settled": self.settled,
            "shrunk": self.shrunk,
            "most": list(self.most),
            "updated": self.updated,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned; a length that is known here stays."""
        self.shrink = _continued(self.shrink, state["shrink"])
        self.prune = _continued(self.prune, state["prune"])
        self.finetune_steps = state["finetune_steps"]
        self.settled, self.updated = state["settled"], state["updated"]
        self.shrunk, self.most = state["shrunk"], tuple(state["most"])
        self.loaded_step = self.prune.step


def _continued(own: PhaseSteps, saved: Mapping[str, int]) -> PhaseSteps:
    """Return the steps that a saved state has done, with the length that is known here, if any."""
    found = PhaseSteps(**saved)
    length = own if own.total else found
    return PhaseSteps(found.step, length.epochs, length.steps_per_epoch)
