"""The argument progress: what is reported, by whom, and what it may be."""

import builtins
import io
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from forked import Forked
from torch import distributed, nn

from robust_plugin import (
    MinimumNorm,
    Progress,
    Smoothed,
    ThreatModel,
    Verifier,
    evaluate,
    obfuscation,
    pgd,
    verify,
)
from robust_plugin.certificates import IBP
from robust_plugin.runtime.progress import check_progress, reporting, with_progress

THREAT = ThreatModel("Linf", eps=0.1)


def half() -> nn.Module:
    """Class 1 where x > 0.5."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    return model.eval()


def points(n: int = 12):
    x = torch.linspace(0.02, 0.98, n)[:, None]
    return x, (x[:, 0] > 0.5).long()


def test_start_units_and_end_are_reported():
    seen = []
    with reporting(seen.append, "proofs", total=3, unit="points") as show:
        assert seen == [Progress("proofs", 0, 3, "points")]
        show(1)
        show(3)
    assert [(p.done, p.total) for p in seen] == [(0, 3), (1, 3), (3, 3)]  # the end only once
    seen.clear()
    with reporting(seen.append, "search", total=9, unit="targets") as show:
        show(2)  # all are fooled: the task ends early
    assert [p.done for p in seen] == [0, 2, 9]


def test_a_failed_task_has_no_end_and_the_functions_own_exception_passes_through():
    seen = []
    with (
        pytest.raises(ZeroDivisionError),
        reporting(seen.append, "a", total=2, unit="points") as show,
    ):
        show(1)
        raise ZeroDivisionError
    assert [p.done for p in seen] == [0, 1]

    def stop(progress):
        raise LookupError(str(progress))

    with (
        pytest.raises(LookupError, match="^a, 0 of 2 points$"),
        reporting(stop, "a", total=2, unit="points"),
    ):
        raise AssertionError("the task must not begin")


def test_a_progress_is_short_and_cannot_be_changed():
    now = Progress("AutoAttack: apgd-ce", 50, 100, "points")
    assert str(now) == "AutoAttack: apgd-ce, 50 of 100 points" and len(repr(now)) < 100
    with pytest.raises(AttributeError):
        now.done = 3


@pytest.mark.parametrize("wrong", [None, 1, "yes", Progress])
def test_other_values_are_refused(wrong):
    with pytest.raises(TypeError, match="give True for a progress bar"):
        check_progress(wrong)
    for refuse in (
        lambda: MinimumNorm(THREAT, progress=wrong),
        lambda: Verifier({"IBP": IBP(THREAT)}, progress=wrong),
        lambda: evaluate(half(), [points()], progress=wrong),
        lambda: verify(half(), *points(), {"IBP": IBP(THREAT)}, progress=wrong),
    ):
        with pytest.raises(TypeError, match="progress is"):
            refuse()


def test_a_bar_counts_to_its_total():
    shown = io.StringIO()
    with redirect_stderr(shown), reporting(True, "proofs", total=40, unit="points") as show:
        show(10)
        show(30)
    last = shown.getvalue().split("\r")[-1]
    assert last.startswith("proofs: 100%") and "40/40" in last and "points" in last


def test_without_tqdm_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with (
        pytest.raises(ImportError, match="pip install tqdm"),
        reporting(True, "a", total=1, unit="points"),
    ):
        pass


def test_only_dataclasses_whose_progress_is_not_set_are_given_it():
    @dataclass(frozen=True)
    class Mine:
        progress: object = field(default=False)

    def function(model, x, y):
        return x

    assert with_progress(Mine(), print) == Mine(print)
    assert with_progress(Mine(True), print) == Mine(True)
    assert with_progress(Mine(), False) == Mine()
    assert with_progress(function, print) is function
    assert with_progress(pgd(THREAT), print) == pgd(THREAT)
    searching = MinimumNorm(THREAT)
    assert with_progress(searching, print).progress is print and searching.progress is False


def test_evaluate_reports_batches_and_what_runs_inside_it():
    x, y = points()
    seen = []
    attacks = {"pgd": pgd(THREAT, steps=2), "nearest": MinimumNorm(THREAT, steps=2)}
    proofs = Verifier({"IBP": IBP(THREAT)}, batch_size=5)
    loader = list(zip(x.split(5), y.split(5), strict=True))
    evaluate(half(), loader, attacks=attacks, certifier=proofs, progress=seen.append)
    outer = [p for p in seen if p.task == "evaluate: clean, pgd, nearest"]
    n = len(loader)
    assert [(p.done, p.total, p.unit) for p in outer] == [(i, n, "batches") for i in range(n + 1)]
    inner = [p for p in seen if p.task == "minimum norm (FAB-T)"]
    assert [p.done for p in inner] == [0, 1] * n  # two classes: one target, in every batch
    assert [p.done for p in seen if p.task == "verify: IBP"] == [0, 5, 10, 12]
    # An inner task ends before the outer one goes on.
    assert seen.index(inner[1]) < seen.index(outer[1])
    with_bars = evaluate(half(), loader, attacks=attacks, certifier=proofs)
    assert with_bars == evaluate(
        half(), loader, attacks=attacks, certifier=proofs, progress=lambda _: None
    )


def test_a_loader_without_a_length_ends_at_its_number_of_batches():
    seen, (x, y) = [], points()
    evaluate(half(), iter([(x[:5], y[:5]), (x[5:], y[5:])]), progress=seen.append)
    assert [(p.done, p.total) for p in seen] == [(0, 1), (1, 2), (2, 3), (2, 2)]


def test_every_long_computation_takes_the_same_argument():
    x, y = points(60)
    for run, task, unit in (
        (lambda p: verify(half(), x, y, {"IBP": IBP(THREAT)}, progress=p), "verify", "points"),
        (lambda p: Smoothed(0.1, n0=5, n=20).certify(half(), x, y, progress=p), "rand", "po"),
        (lambda p: Smoothed(0.1, n=20).predict(half(), x, progress=p), "rand", "points"),
        (lambda p: MinimumNorm(THREAT, steps=2, progress=p)(half(), x, y), "minimum", "targ"),
        (lambda p: obfuscation(half(), x, y, THREAT, progress=p), "checks for", "parts"),
    ):
        seen = []
        run(seen.append)
        assert seen[0].done == 0 and seen[-1].done == seen[-1].total > 0
        assert sorted(p.done for p in seen) == [p.done for p in seen]
        assert len({(p.task, p.total, p.unit) for p in seen}) == 1
        assert seen[0].task.startswith(task) and seen[0].unit.startswith(unit)


def one_of_two(rank: int, meeting: Path) -> None:
    """Report progress as one of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    distributed.barrier()
    with reporting(print, "attack", total=1, unit="points") as show:
        show(1)
    distributed.barrier()
    distributed.destroy_process_group()


def test_of_several_processes_the_first_alone_reports(tmp_path: Path):
    runs = [Forked(one_of_two, rank, tmp_path / "meeting") for rank in (0, 1)]
    first, second = (run.communicate(timeout=120)[0] for run in runs)
    assert first.splitlines() == ["attack, 0 of 1 points", "attack, 1 of 1 points"]
    assert second == "" and all(run.returncode == 0 for run in runs)
