"""Progress bars: ``Progress`` for the training stages of a run, ``progress_bar`` for other work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robust_plugin.recipes.runtime.process_group import is_first

_REFRESH = 20  # number of steps after which the time left is updated


class Progress:
    """The progress bar of each training stage of a run, with the time left for the whole run.

    The time left includes the validation after each epoch.

    Args:
        stages: number of optimizer steps of each stage by name, in the order they are trained.
    """

    def __init__(self, stages: Mapping[str, int]) -> None:
        self._stages, self._ahead = dict(stages), dict(stages)
        self._started: float | None = None
        self._done = 0  # steps since self._started
        self._left = 0  # steps that this stage still has to take
        self._values: dict[str, str] = {}
        self._bar: Any = None

    @contextmanager
    def stage(self, name: str, *, steps: int, done: int, folder: Path) -> Iterator[None]:
        """Return a context manager in which the progress bar of one stage is shown.

        Args:
            name: name of the stage.
            steps: number of optimizer steps in the stage.
            done: number of these steps that the run took before it was interrupted; 0 for a new
                stage.
            folder: folder of the run; printed, with the name of the stage, where no bar can be
                shown.
        """
        for earlier in list(self._ahead):  # this stage and those before it are no longer ahead
            self._ahead.pop(earlier)
            if earlier == name:
                break
        if done < steps and not sys.stderr.isatty() and is_first():  # tqdm shows no bar
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
        """Return the total number of epochs of all stages before a stage.

        Experiment trackers count the epochs of a run continuously over all its stages.

        Args:
            name: name of the stage.
            per_epoch: number of optimizer steps per epoch.
        """
        names = list(self._stages)
        earlier = names[: names.index(name)] if name in names else []
        return sum(self._stages[each] for each in earlier) // per_epoch

    def update(self) -> None:
        """Count one optimizer step, and move the bar."""
        self._done += 1
        self._left -= 1
        if self._bar is not None:
            self._bar.update()
            if self._done % _REFRESH == 0:
                self.show(**self._values)

    def show(self, **values: str) -> None:
        """Show values behind the progress bar, together with the time left for the run.

        Args:
            **values: texts by name, such as the loss.
        """
        self._values = values
        if self._bar is not None:
            self._bar.set_postfix({**values, "run": f"{clock(self.left)} left"})

    @property
    def left(self) -> float:
        """Estimated seconds until the end of the run, from the mean time per step so far."""
        if self._started is None or self._done == 0:
            return 0.0
        steps = sum(self._ahead.values()) + self._left
        return steps * (time.monotonic() - self._started) / self._done


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss, or as "3 d h:mm:ss" from one day on.

    >>> clock(3723)
    '1:02:03'
    """
    days, rest = divmod(round(seconds), 86400)
    return (f"{days} d " if days else "") + str(timedelta(seconds=rest))


def progress_bar(what: str, *, unit: str) -> Callable[..., None]:
    """Return a function that shows a progress bar with the time left, from its first call on.

    Call it as ``show(done, total)``, or as ``show(done, total, text)`` to change the text in front
    of the bar: ``done`` of ``total`` units of work are finished. At ``done == total`` the bar is
    closed; a later call opens a new one.

    Args:
        what: text in front of the bar.
        unit: name of what is counted, such as "point" or "batch".
    """
    bar: Any = None

    def show(done: int, total: int, text: str = what) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc=text, unit=unit, disable=None)
        bar.set_description(text, refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            bar = None

    return show
