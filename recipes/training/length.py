"""Number of epochs and optimizer steps of a training stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.data.batches import steps_of
from robust_plugin.recipes.training.run import Run


@dataclass(frozen=True)
class Length:
    """Length of a training stage.

    Attributes:
        epochs: number of passes over the training points.
        batches: number of batches per epoch.
        passes: number of optimizer steps on each batch: the number of replays in free adversarial
            training, otherwise 1.
    """

    epochs: int
    batches: int
    passes: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps per epoch."""
        return self.batches * self.passes

    @property
    def steps(self) -> int:
        """Number of optimizer steps in the stage."""
        return self.epochs * self.steps_per_epoch


def length_of(run: Run, stage: StageConfig) -> Length:
    """Return the length of a stage of a run.

    Free adversarial training takes several steps on each batch and has fewer epochs, so that a
    stage has about as many steps as with any other objective.

    Args:
        run: run that the stage belongs to; its objective, training points and batch size are used.
        stage: settings of the stage.
    """
    passes = run.objective.replays if run.objective.name == "free" else 1
    batches = steps_of(run.data.train, batch_size=run.config.data.batch_size)
    return Length(max(1, stage.epochs // passes), batches, passes)


@dataclass(frozen=True)
class Span:
    """The part of a learning rate cosine that a stage takes.

    Attributes:
        after: number of epochs of the cosine before the stage.
        of: number of epochs of the whole cosine.
    """

    after: int
    of: int


def span_of(run: Run, stage: StageConfig, sharing: Sequence[StageConfig]) -> Span:
    """Return the part of a learning rate cosine that a stage takes.

    Args:
        run: run that the stage belongs to.
        stage: settings of the stage.
        sharing: all stages of the cosine in order, ``stage`` among them; empty if the stage has a
            cosine of its own.
    """
    stages = tuple(sharing) or (stage,)
    epochs = [length_of(run, each).epochs for each in stages]
    place = next(number for number, each in enumerate(stages) if each is stage)
    return Span(after=sum(epochs[:place]), of=sum(epochs))
