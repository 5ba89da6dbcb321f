"""What a run shows while it trains: a bar a stage, and the time left for all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robust_plugin.recipes.runtime.process_group import is_first

_REFRESH = 20  # steps after which the time left is shown anew, within an epoch too


class Progress:
    """Counts the steps of a run and estimates the time left, validation included.

    Args:
        stages: optimizer steps of each stage, by name, in their order.
    """

    def __init__(self, stages: Mapping[str, int]) -> None:
        self._stages, self._ahead = dict(stages), dict(stages)
        self._started: float | None = None
        self._done = 0  # since then
        self._left = 0  # in this stage
        self._values: dict[str, str] = {}
        self._bar: Any = None

    @contextmanager
    def stage(self, name: str, *, steps: int, done: int, folder: Path) -> Iterator[None]:
        """Show one stage; of its steps some may have been taken before."""
        for earlier in list(self._ahead):  # those before it are over
            self._ahead.pop(earlier)
            if earlier == name:
                break
        if done < steps and not sys.stderr.isatty() and is_first():  # where no bar is shown
            print(f"{name}, steps {done} to {steps}: {folder}", file=sys.stderr)
        self._started = time.monotonic() if self._started is None else self._started
        self._left = steps - done
        disable = None if is_first() else True
        with tqdm(total=steps, initial=done, desc=name, unit="step", disable=disable) as self._bar:
            try:
                yield
            finally:
                self._bar = None

    def before(self, name: str, *, per_epoch: int) -> int:
        """Return how many epochs the stages before one take; trackers count through."""
        names = list(self._stages)
        earlier = names[: names.index(name)] if name in names else []
        return sum(self._stages[each] for each in earlier) // per_epoch

    def update(self) -> None:
        """Count one step."""
        self._done += 1
        self._left -= 1
        if self._bar is not None:
            self._bar.update()
            if self._done % _REFRESH == 0:
                self.show(**self._values)

    def show(self, **values: str) -> None:
        """Show what an epoch has ended with, and the time left for the whole run."""
        self._values = values
        if self._bar is not None:
            self._bar.set_postfix({**values, "run": f"{clock(self.left)} left"})

    @property
    def left(self) -> float:
        """Seconds that the rest of the run takes at the pace so far."""
        if self._started is None or self._done == 0:
            return 0.0
        steps = sum(self._ahead.values()) + self._left
        return steps * (time.monotonic() - self._started) / self._done


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss, with days where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02d}:{rest:02d}"
