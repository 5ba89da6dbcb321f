"""The commands: quiet runs, locks of their folders, and words that they do not take."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.commands import _preset_for
from robust_plugin.recipes.runtime.folder_lock import locked

Words = Callable[..., list[str]]


@pytest.mark.usefixtures("at_workplace")
def test_a_folder_in_use_is_refused_at_once_and_left_as_it_is(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words("magnitude", run)) == 0
    capsys.readouterr()
    before = sorted(path.name for path in run.iterdir())
    with locked(tmp_path / "report"), locked(run):
        for command in (
            words("magnitude", run),
            words("compare", run),
            ["evaluate", str(run), "--attack", "pgd", f"--out={tmp_path / 'report'}"],
        ):
            assert main(command) == 1
            error = capsys.readouterr().err
            assert re.search(r"error: \S+ is in use by process \d+ on \S+, since ", error)
            assert "another --out" in error
        # What only reads a folder needs no lock.
        assert main(["evaluate", str(run), "--attack", "pgd", "--checks=0"]) == 0
        assert main(["list"]) == 0
        assert main([*words("magnitude", run), "--dry-run"]) == 0
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.usefixtures("at_workplace")
def test_another_process_of_torchrun_takes_no_lock(
    tmp_path: Path, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process holds the lock for all of them."""
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"):
        assert main(words("magnitude", tmp_path / "out")) == 0


@pytest.mark.usefixtures("at_workplace")
def test_progress_names_epochs_and_tasks_and_quiet_prints_results_alone(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    loud, quiet = tmp_path / "loud", tmp_path / "quiet"
    proofs = ("--evaluation.verify=8", "--evaluation.certify=ibp")
    assert main(words("hydra", loud, *proofs)) == 0
    printed = capsys.readouterr()
    for stage in ("pretrain", "prune", "finetune"):
        for epoch in (1, 2):
            line = rf"^{loud}: {stage}, epoch {epoch} of 2: loss \S+, robust .*; 0:\d\d:\d\d left$"
            assert len(re.findall(line, printed.err, re.MULTILINE)) == 1
    assert f"{loud}: evaluate: clean, PGD-3x2, " in printed.err
    assert re.search(r"^finished in 0:\d\d:\d\d$", printed.err, re.MULTILINE)
    assert main([*words("hydra", quiet, *proofs), "--quiet"]) == 0
    second = capsys.readouterr()
    assert str(quiet) not in second.err and "finished" not in second.err
    assert (
        second.out.replace(str(quiet), str(loud)).splitlines()[:6] == (printed.out.splitlines()[:6])
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["channels", "--dry-run"], "unknown option --dry-run; channels takes folders of runs"),
        (["harp", "runs/a"], "'runs/a' belongs to no option; robust-plugin harp --help shows"),
        (["evaluate", "--attack=pgd", "--n"], "--n needs a value."),
        (["compare", "--seeds", "1", "x"], "seeds.1 is 'x'; legal: a whole number."),
    ],
)
def test_words_that_a_command_does_not_take_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_help_needs_no_colour_and_fits_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["harp", "--help"]) == 0 and main(["evaluate", "--help"]) == 0
    lines = screen.getvalue().splitlines()
    assert "\x1b" not in screen.getvalue() and max(map(len, lines)) <= 60


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        ([], "digits"),
        (["--density=0.1"], "digits"),
        (["--data.name", "cifar10"], "digits"),
        (["--data.folder=images"], "digits"),  # refused later: it lacks --data.name
        (["--data.name=folder", "--data.folder=images"], "images"),
        (["--density", "0.1", "--data.name", "table"], "images"),
        (["--data.name=huggingface"], "images"),
        (["--data.name", "my_data:load"], "images"),
        (["--data.name=folder", "--data.name=digits"], "digits"),  # the last one counts
    ],
)
def test_data_of_the_users_own_take_the_preset_of_images(words: list[str], preset: str) -> None:
    for command in ("magnitude", "hydra", "harp"):
        assert _preset_for(command, words) == f"{command}/{preset}"


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("command", "preset", "said"),
    [
        ("hydra", "harp/digits", "harp/digits is a preset of harp, and hydra runs with its"),
        ("harp", "hydra/digits-mart", "hydra/digits-mart is a preset of hydra, and harp runs"),
        ("hydra", "hydra/digits", ""),
        ("magnitude", "harp/digits", ""),  # on purpose: magnitude is the baseline of the others
    ],
)
def test_a_preset_of_another_recipe_is_said_in_one_line(
    command: str,
    preset: str,
    said: str,
    tmp_path: Path,
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = words(command, tmp_path / "out", "--dry-run", f"--config={preset}")
    assert main(given) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "preset" in line]
    assert len(lines) == bool(said) and all(line.startswith(said) for line in lines)
    assert main([*given, "--quiet"]) == 0
    assert "preset" not in capsys.readouterr().err
