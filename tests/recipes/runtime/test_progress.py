"""Progress of a run: the time left, bars on a terminal, and lines elsewhere."""

import io
import sys
from collections.abc import Iterator

import pytest

from robust_plugin.recipes.runtime.progress import (
    RunProgress,
    clock,
    hide_progress,
    shows_bars,
    shows_progress,
)
from robust_plugin.runtime.progress import Progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, that tests set."""
    moment = [0.0]
    monkeypatch.setattr("robust_plugin.recipes.runtime.progress.time.monotonic", lambda: moment[0])
    return moment


@pytest.fixture
def hidden() -> Iterator[None]:
    hide_progress()
    yield
    hide_progress(False)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_time_left_is_that_of_all_stages_and_of_the_evaluation(now: list[float]) -> None:
    progress = RunProgress(
        {"pretrain": 10, "prune": 4, "finetune": 6}, expected={"AutoAttack: a": 50.0, "verify": 7.0}
    )
    assert progress.left is None  # nothing to estimate from
    with progress.stage("pretrain", epochs=5, steps=10, done=8):
        for _ in range(2):
            progress.update()
            now[0] += 3.0  # including validation
        assert progress.left == pytest.approx(3.0 * 10 + 57.0)
    now[0] += 1000.0  # between stages nothing is trained
    with progress.stage("prune", epochs=2, steps=4, done=0):
        progress.update()
        now[0] += 3.0
        assert progress.left == pytest.approx(3.0 * 9 + 57.0)
        for _ in range(3):
            progress.update()
            now[0] += 3.0
    with progress.stage("finetune", epochs=2, steps=6, done=0):
        for _ in range(6):
            progress.update()
            now[0] += 3.0
    assert progress.left == pytest.approx(57.0)
    progress(Progress("AutoAttack: a", 0, 10, "points"))
    now[0] += 20.0
    assert progress.left == pytest.approx(30.0 + 7.0)  # still the expected time
    progress(Progress("AutoAttack: a", 5, 10, "points"))
    assert progress.left == pytest.approx(20.0 + 7.0)  # at its own pace
    progress(Progress("AutoAttack: a", 10, 10, "points"))
    assert progress.left == pytest.approx(7.0)
    progress.expect({"verify": 9.0})
    progress(Progress("verify: IBP, CROWN", 0, 4, "points"))
    now[0] += 4.0
    progress(Progress("verify: IBP, CROWN", 2, 4, "points"))
    assert progress.left == pytest.approx(4.0)
    progress(Progress("verify: IBP, CROWN", 4, 4, "points"))
    assert progress.left == 0.0


def test_a_task_that_had_nothing_to_do_is_not_waited_for() -> None:
    expected = {"evaluate": 1.0, "AutoAttack: a": 2.0, "AutoAttack: b": 4.0, "verify": 8.0}
    progress = RunProgress({}, expected=expected)
    progress(Progress("evaluate: clean, PGD-20", 0, 1, "batches"))
    progress(Progress("evaluate: clean, PGD-20", 1, 1, "batches"))
    assert progress.left == 14.0
    progress(Progress("AutoAttack: b", 0, 3, "points"))  # there were no points for the first one
    progress(Progress("AutoAttack: b", 3, 3, "points"))
    progress(Progress("dense network: evaluate", 0, 3, "points"))  # not among the expected tasks
    assert progress.left == 8.0


def test_without_expectations_the_outer_task_counts(now: list[float]) -> None:
    progress = RunProgress({})
    progress(Progress("evaluate", 0, 4, "batches"))
    assert progress.left is None
    now[0] += 10.0
    progress(Progress("evaluate", 1, 4, "batches"))
    progress(Progress("FAB", 0, 9, "target classes"))
    assert progress.left == pytest.approx(30.0)


def test_without_a_terminal_each_epoch_and_task_is_a_line(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = RunProgress({"prune": 6}, where="runs/harp")
    with progress.stage("prune", epochs=3, steps=6, done=2):
        for epoch in range(2):
            for _ in range(2):
                progress.update()
                now[0] += 1.0
            progress.show(loss=f"{epoch}.5", robust="0.250")
    for done in range(0, 101):
        progress(Progress("AutoAttack: square", done, 100, "points"))
        now[0] += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "runs/harp: prune, epoch 2 of 3: loss 0.5, robust 0.250; 0:00:02 left",
        "runs/harp: prune, epoch 3 of 3: loss 1.5, robust 0.250; 0:00:00 left",
        "runs/harp: AutoAttack: square, 0 of 100 points",
        "runs/harp: AutoAttack: square, 30 of 100 points; 0:01:10 left",
        "runs/harp: AutoAttack: square, 60 of 100 points; 0:00:40 left",
        "runs/harp: AutoAttack: square, 90 of 100 points; 0:00:10 left",
        "runs/harp: AutoAttack: square, 100 of 100 points; 0:00:00 left",
    ]


def test_on_a_terminal_bars_are_shown_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = RunProgress({"prune": 2}, where="runs/harp")
    assert shows_bars()
    with progress.stage("prune", epochs=1, steps=2, done=0):
        progress.update()
        progress.update()
        progress.show(loss="0.5")
    progress(Progress("verify: IBP", 0, 3, "points"))
    progress(Progress("verify: IBP", 3, 3, "points"))
    shown = screen.getvalue()
    assert "prune: 100%" in shown and "loss=0.5" in shown and "0:00:00 left" in shown
    assert "verify: IBP: 100%" in shown and shown.endswith("\n")  # a bar that is closed
    assert "runs/harp" not in shown and "epoch" not in shown


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("terminal", [True, False])
def test_hidden_progress_prints_nothing(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    assert not shows_progress() and not shows_bars()
    progress = RunProgress({"prune": 1}, where="runs/harp")
    with progress.stage("prune", epochs=1, steps=1, done=0):
        progress.update()
        progress.show(loss="0.5")
    progress(Progress("verify: IBP", 0, 3, "points"))
    progress(Progress("verify: IBP", 3, 3, "points"))
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (86399.4, "23:59:59"), (86399.6, "1 d 0:00:00")],
)
def test_a_duration_is_rounded_to_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text
    assert clock(3 * 86400 + 3723) == "3 d 1:02:03"


def test_epochs_count_through_all_stages() -> None:
    progress = RunProgress({"pretrain": 12, "prune": 6, "finetune": 9})
    found = [progress.before(name, per_epoch=3) for name in ("pretrain", "prune", "finetune")]
    assert found == [0, 4, 6]
