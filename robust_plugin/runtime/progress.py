"""The argument ``progress`` of everything that takes long, and ``Progress``, what it reports.

The argument has one meaning everywhere: False shows nothing, True shows the progress bar of tqdm,
and a function is called with a ``Progress`` at the start of each task, after each unit of its work
and at its end. Under torch.distributed only the process of rank 0 reports. tqdm is imported when a
bar is first shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Protocol, TypeAlias, TypeVar

from robust_plugin.runtime.distributed import rank_and_world

Method = TypeVar("Method")


@dataclass(frozen=True)
class Progress:
    """How far a long computation is; functions that are given as ``progress`` get one per call.

    Tasks may be nested: a task that begins within another one ends before the outer one goes on.

    Attributes:
        task: what is being computed, such as ``"AutoAttack: apgd-ce"``.
        done: number of finished units, from 0 to ``total``.
        total: number of all units.
        unit: what is counted, in the plural, such as ``"points"``.

    >>> print(Progress("verify: IBP", 50, 200, "points"))
    verify: IBP, 50 of 200 points
    """

    task: str
    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        """Return one line, so that ``progress=print`` prints something readable."""
        return f"{self.task}, {self.done} of {self.total} {self.unit}"


ProgressOption: TypeAlias = bool | Callable[[Progress], None]


class Show(Protocol):
    """Function that reports how many units of a task are finished."""

    def __call__(self, done: int, total: int | None = None, /) -> None:
        """Report that ``done`` units are finished, of ``total`` or of as many as before."""


def check_progress(progress: ProgressOption) -> ProgressOption:
    """Return the argument ``progress``; raise a TypeError unless it is a bool or a function."""
    if isinstance(progress, bool) or (callable(progress) and not isinstance(progress, type)):
        return progress
    raise TypeError(
        f"progress is {progress!r}; give True for a progress bar, a function that takes a "
        "robust_plugin.Progress, or False."
    )


@contextmanager
def reporting(progress: ProgressOption, task: str, *, total: int, unit: str) -> Iterator[Show]:
    """Within the context one task runs; yield the function that reports its finished units.

    The beginning of the task is reported, and its end if the task has not failed. An exception that
    the user's function raises passes through.

    Args:
        progress: False, True for a bar of tqdm, or a function that takes a ``Progress``.
        task: what is being computed.
        total: number of units.
        unit: what is counted, in the plural.

    Raises:
        TypeError: if ``progress`` is none of these.
        ImportError: if ``progress`` is True and tqdm is not installed.
    """
    if check_progress(progress) is False or rank_and_world()[0] > 0:
        yield lambda done, total=None, /: None
        return
    bar = _Bar() if progress is True else None
    tell: Callable[[Progress], None] = bar or progress  # type: ignore[assignment]
    last = Progress(task, 0, total, unit)

    def show(done: int, total: int | None = None, /) -> None:
        nonlocal last
        last = replace(last, done=done, total=last.total if total is None else total)
        tell(last)

    try:
        tell(last)
        yield show
        if last.done != last.total:
            show(last.total)
    finally:
        if bar is not None:
            bar.close()


class _Bar:
    """The progress bar of one task, by tqdm; in a notebook it is the notebook's bar."""

    def __init__(self) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                "progress=True shows a bar of tqdm, which is not installed: pip install tqdm, or "
                "give a function that takes a robust_plugin.Progress."
            ) from error
        self._tqdm: Any = tqdm
        self._bar: Any = None

    def __call__(self, now: Progress) -> None:
        if self._bar is None:
            text = {"desc": now.task, "unit": f" {now.unit}"}
            self._bar = self._tqdm(total=now.total, leave=None, **text)  # outer bars stay
        self._bar.total = now.total
        self._bar.update(now.done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def with_progress(method: Method, progress: ProgressOption) -> Method:
    """Return an attack or certifier that reports as the computation does that it is part of.

    It must be a dataclass with a field ``progress``. Any other object, and one whose ``progress``
    is set already, is returned itself.

    Args:
        method: an attack or certifier.
        progress: what its ``progress`` becomes.
    """
    if progress is False or not is_dataclass(method) or isinstance(method, type):
        return method
    if getattr(method, "progress", None) is not False:
        return method
    made: Method = replace(method, progress=progress)
    return made
