"""Progress of a whole run: bars on a terminal, otherwise one line per epoch, and the time left.

``RunProgress`` counts the training steps of a run and receives the reports of its evaluation. Its
time left covers everything that the run still has to do, so also attacks and proofs at its end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robust_plugin.recipes.runtime.process_group import is_first
from robust_plugin.runtime.progress import Progress

_REFRESH = 20  # number of steps after which the time left is updated
_PAUSE = 30.0  # seconds between two lines about the same task, where no bar can be shown

_hidden = False


def hide_progress(hidden: bool = True) -> None:
    """Show no progress in this process from now on; False shows it again."""
    global _hidden
    _hidden = hidden


def shows_progress() -> bool:
    """Return whether this process shows progress, as bars or as lines."""
    return is_first() and not _hidden


def shows_bars() -> bool:
    """Return whether this process shows progress as bars: stderr is then a terminal."""
    return shows_progress() and sys.stderr.isatty()


class RunProgress:
    """What a run has done and still has to do: its training stages, then its evaluation.

    A run of the recipes calls ``stage``, ``update`` and ``show``. The object itself is a function
    that takes a ``Progress``: give it as ``progress`` to ``evaluate`` and other functions.

    Args:
        stages: number of optimizer steps of each stage by name, in the order they are trained.
        expected: expected seconds of the tasks of the evaluation in their order, by the beginning
            of the name under which a task is reported, such as ``"AutoAttack: apgd-ce"``.
        where: what begins each line that is printed where no bar can be shown: the run's folder.
    """

    def __init__(
        self,
        stages: Mapping[str, int],
        *,
        expected: Mapping[str, float] | None = None,
        where: Path | str = "",
    ) -> None:
        self._stages, self._ahead = dict(stages), dict(stages)
        self._expected = dict(expected or {})
        self._where = f"{where}: " if str(where) else ""
        self._trained = 0.0  # seconds in the stages that have ended
        self._began: float | None = None  # beginning of the current stage
        self._done = 0  # steps in this process
        self._left = 0  # steps that this stage still has to take
        self._epochs, self._epoch = 0, 0  # of this stage: all, and those that have ended
        self._values: dict[str, str] = {}
        self._bar: Any = None
        self._tasks: dict[str, _Task] = {}

    def expect(self, expected: Mapping[str, float]) -> None:
        """Replace the expected seconds of the tasks of the evaluation."""
        self._expected = dict(expected)

    # --- training ---------------------------------------------------------------------------

    @contextmanager
    def stage(self, name: str, *, epochs: int, steps: int, done: int) -> Iterator[None]:
        """Return a context manager in which the progress of one stage is shown.

        Args:
            name: name of the stage.
            epochs: number of epochs in the stage.
            steps: number of optimizer steps in the stage.
            done: number of these steps that the run took before it was interrupted; 0 for a new
                stage.
        """
        for earlier in list(self._ahead):  # this stage and those before it are no longer ahead
            self._ahead.pop(earlier)
            if earlier == name:
                break
        self._name, self._epochs, self._epoch = name, epochs, round(done / steps * epochs)
        self._began, self._left = time.monotonic(), steps - done
        with tqdm(
            total=steps, initial=done, desc=name, unit="step", disable=not shows_bars()
        ) as self._bar:
            try:
                yield
            finally:
                self._bar = None
                self._trained += time.monotonic() - self._began
                self._began = None

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
                self._describe()

    def show(self, **values: str) -> None:
        """Show the values of an epoch that has ended, with the time left for the run.

        Args:
            **values: texts by name, such as the loss.
        """
        self._values = values
        self._epoch += 1
        if shows_bars():
            self._describe()
        elif shows_progress():
            said = ", ".join(f"{name} {value}" for name, value in values.items())
            self._print(f"{self._name}, epoch {self._epoch} of {self._epochs}: {said}")

    def _describe(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix({**self._values, **self._run()})

    # --- evaluation -------------------------------------------------------------------------

    def __call__(self, now: Progress) -> None:
        """Show how far a task of the evaluation is.

        Args:
            now: what a function with an argument ``progress`` reports.
        """
        if now.task not in self._tasks:
            self._tasks[now.task] = _Task(now)
        task = self._tasks[now.task]
        task.now = now
        self._drop_expected(now)
        if shows_bars():
            if task.bar is None:
                unit = f" {now.unit}"
                task.bar = tqdm(total=now.total, desc=now.task, unit=unit)
            task.bar.total = now.total
            task.bar.update(now.done - task.bar.n)
            task.bar.set_postfix(self._run())
        elif shows_progress() and task.due():
            self._print(str(now))
        if now.done == now.total:
            task.close()
            del self._tasks[now.task]

    @property
    def left(self) -> float | None:
        """Estimated seconds until the end of the run; None if there is nothing to estimate from.

        Training goes on at the mean time per step so far, which includes validation. A task of the
        evaluation that has begun goes on at its pace; one that has not takes the expected time. If
        no task was expected, the time is that of the task that began first.
        """
        steps = sum(self._ahead.values()) + self._left
        if steps and not self._done:
            return None
        seconds = 0.0
        if steps:
            spent = 0.0 if self._began is None else time.monotonic() - self._began
            seconds = steps * (self._trained + spent) / self._done
        ahead: dict[str, float | None] = {**self._expected}
        if not ahead and self._tasks:
            ahead = {next(iter(self._tasks)): None}
        for name, expected in ahead.items():
            task = self._begun(name)
            left = expected if task is None else task.left(expected)
            if left is None:
                return None
            seconds += left
        return seconds

    def _begun(self, name: str) -> _Task | None:
        """Return the task that runs now and whose name begins with ``name``; None if none does."""
        return next((task for each, task in self._tasks.items() if each.startswith(name)), None)

    def _drop_expected(self, now: Progress) -> None:
        """Expect a task no more if it has ended, nor those before it that had nothing to do."""
        names = list(self._expected)
        own = next((name for name in names if now.task.startswith(name)), None)
        if own is None:
            return
        for earlier in names[: names.index(own)]:
            if self._begun(earlier) is None:
                del self._expected[earlier]
        if now.done == now.total:
            del self._expected[own]

    def _run(self) -> dict[str, str]:
        return {} if self.left is None else {"run": f"{clock(self.left)} left"}

    def _print(self, text: str) -> None:
        left = "" if self.left is None else f"; {clock(self.left)} left"
        print(f"{self._where}{text}{left}", file=sys.stderr, flush=True)


class _Task:
    """One task of an evaluation: how far it is, and when it was shown.

    Args:
        now: its first report.
    """

    def __init__(self, now: Progress) -> None:
        self.now, self.bar = now, None
        self._first, self._began = now.done, time.monotonic()
        self._shown: float | None = None

    bar: Any

    def due(self) -> bool:
        """Return whether a line about it should be printed now, and note that it is."""
        moment = time.monotonic()
        ended = self.now.done == self.now.total
        if ended or self._shown is None or moment - self._shown >= _PAUSE:
            self._shown = moment
            return True
        return False

    def left(self, expected: float | None) -> float | None:
        """Return the seconds until its end, by its pace.

        Args:
            expected: expected seconds of the whole task, for the time before it has a pace; None if
                it is not known.
        """
        done, spent = self.now.done - self._first, time.monotonic() - self._began
        if done <= 0:
            return None if expected is None else max(expected - spent, 0.0)
        return spent * (self.now.total - self.now.done) / done

    def close(self) -> None:
        """Close its bar, if it has one."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss, or as "3 d h:mm:ss" from one day on.

    >>> clock(3723)
    '1:02:03'
    """
    days, rest = divmod(round(seconds), 86400)
    return (f"{days} d " if days else "") + str(timedelta(seconds=rest))
