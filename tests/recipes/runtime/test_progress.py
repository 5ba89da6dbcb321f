"""Progress of a run: the time left, and bars."""

import io
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from robust_plugin.recipes.runtime import progress as progress_module
from robust_plugin.recipes.runtime.progress import Progress, clock, progress_bar


def test_the_time_left_is_that_of_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("robust_plugin.recipes.runtime.progress.time.monotonic", lambda: now[0])
    progress = Progress({"pretrain": 10, "prune": 4, "finetune": 6})
    with progress.stage("pretrain", steps=10, done=8, folder=tmp_path):
        for _ in range(2):
            progress.update()
            now[0] += 3.0  # including validation
        assert progress.left == pytest.approx(3.0 * 10)
    with progress.stage("prune", steps=4, done=0, folder=tmp_path):
        progress.update()
        now[0] += 3.0
        assert progress.left == pytest.approx(3.0 * 9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (86399.4, "23:59:59"), (86399.6, "1 d 0:00:00")],
)
def test_a_duration_is_rounded_to_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text
    assert clock(3 * 86400 + 3723) == "3 d 1:02:03"


def test_epochs_count_through_all_stages() -> None:
    progress = Progress({"pretrain": 12, "prune": 6, "finetune": 9})
    found = [progress.before(name, per_epoch=3) for name in ("pretrain", "prune", "finetune")]
    assert found == [0, 4, 6]


def test_a_bar_is_closed_at_the_end_and_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Shown(tqdm):  # type: ignore[type-arg]
        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "disable": False, "file": io.StringIO()})
            self.closed = False
            bars.append(self)

        def close(self) -> None:
            self.closed = True
            super().close()

    monkeypatch.setattr(progress_module, "tqdm", Shown)
    show = progress_bar("proofs", unit="point")
    show(3, 5)
    assert (bars[0].n, bars[0].total, bars[0].desc) == (3, 5, "proofs: ") and not bars[0].closed
    show(5, 5, "proofs of the last")
    assert bars[0].n == 5 and bars[0].desc == "proofs of the last: " and bars[0].closed
    show(1, 5)
    assert len(bars) == 2 and bars[1].n == 1
