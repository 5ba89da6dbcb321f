"""An evaluation that is stopped continues with the same command, and with no other."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from forked import Forked
from printed import saved
from torch import nn

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.evaluate.unfinished import (
    PREFIX,
    FinishedParts,
    finished_parts,
    unfinished_folder,
)
from robust_plugin.runtime.journal import Journal

NET = nn.Linear(2, 2)


def stopped(words: list[str], home: Path, how: signal.Signals) -> tuple[int, str, Path]:
    """Start a command, stop it by a signal once two batches are finished; return how it ended."""
    process, end = Forked(main, words), time.monotonic() + 120
    while len(list(home.glob(f"{PREFIX}*/*/*-0000*.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < end, "no batch was finished"
        time.sleep(0.01)
    process.send_signal(how)
    status = process.wait(timeout=60)
    (left,) = home.glob(f"{PREFIX}*")
    return status, process.communicate()[1], left


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_a_stopped_evaluation_continues_with_the_same_command(
    how: signal.Signals, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.json"
    words = ["evaluate", str(run), "--attack=screen", "--checks=0", "--batch-size=4"]
    words += ["--eps=4/255", "--n=24"]
    units = 2 * 6  # two attacks of the screening, six batches
    status, error, left = stopped([*words, f"--out={out}"], tmp_path, how)
    assert status == (130 if how is signal.SIGINT else -signal.SIGKILL) and not out.exists()
    if how is signal.SIGINT:
        said = f"Interrupted. The same command continues: {left} holds the finished batches of scr"
        assert error.strip().splitlines()[-1].startswith(said) and "Traceback" not in error
    finished = {path.stem for path in left.glob("screen/*-0000*.safetensors")}
    assert 2 <= len(finished) < units

    written: list[str] = []
    put = Journal.put
    monkeypatch.setattr(
        Journal, "put", lambda self, unit, found: (written.append(unit), put(self, unit, found))[0]
    )
    # A command with other settings computes everything, and leaves what it does not own.
    assert main([*words, f"--out={out}", "--batch-size=12"]) == 0
    assert len([unit for unit in written if unit != "answers"]) == 2 * 2
    assert list(tmp_path.glob(f"{PREFIX}*")) == [left]
    written.clear()
    assert main([*words, f"--out={out}"]) == 0
    assert not set(written) & finished and len(written) == units - len(finished)
    assert list(tmp_path.iterdir()) == [out]
    assert main([*words, f"--out={tmp_path / 'whole.json'}"]) == 0
    whole = saved(tmp_path / "whole.json")
    assert saved(out) == whole and 0 < whole.accuracy("screening (apgd-ce, apgd-t)") < 1


def begun(config: EvaluateConfig, out: Path | None, model: nn.Module = NET) -> FinishedParts:
    parts = FinishedParts()
    parts.begin(config, out, model)
    return parts


def test_parts_lie_in_the_folder_of_the_reports_or_of_the_run(run: Path, tmp_path: Path) -> None:
    config = replace(of_run(run), attacks=("pgd", "screen"), certify="cascade")
    for out, home in (
        (tmp_path / "out", tmp_path / "out"),
        (tmp_path / "a.json", tmp_path),
        (None, run),
    ):
        found = begun(config, out)
        assert found.folder is not None and found.folder.parent == home and found.temporary
        assert "the finished batches of screen and the proofs." in found.message
        assert found.message.startswith("Interrupted. The same command continues: ")
    named = begun(replace(config, journal=tmp_path / "mine"), None)
    assert named.folder == tmp_path / "mine" and not named.temporary
    foreign = begun(replace(config, checkpoint=tmp_path / "net.pt"), None)
    assert foreign.folder is None and "With --out FOLDER it would continue" in foreign.message
    nothing = begun(replace(config, attacks=("pgd", "fab"), certify="ibp"), tmp_path / "out")
    assert nothing.folder is None
    assert "begins anew: pgd, fab and certify ibp keep no finished parts" in nothing.message


def test_each_setting_and_network_has_its_own_folder(tmp_path: Path) -> None:
    config = EvaluateConfig(attacks=("screen",))
    again = begun(config, tmp_path)
    others = [
        begun(replace(config, seed=1), tmp_path),
        begun(replace(config, n=5), tmp_path),
        begun(config, tmp_path, nn.Linear(2, 2)),
        begun(config, tmp_path / "a.json"),
    ]
    assert begun(config, tmp_path).folder == again.folder
    assert len({parts.folder for parts in [again, *others]}) == 5
    assert unfinished_folder(tmp_path, {"a": 1}) != unfinished_folder(tmp_path, {"a": 2})


def test_a_temporary_folder_is_removed_at_the_end_and_only_then(tmp_path: Path) -> None:
    for temporary in (True, False):
        for error in (ValueError, KeyboardInterrupt, None):
            folder = tmp_path / f"{temporary}-{error}"
            folder.mkdir()
            try:
                with finished_parts() as parts:
                    parts.folder, parts.temporary, parts.message = folder, temporary, "kept"
                    if error is not None:
                        raise error("stop")
            except (ValueError, KeyboardInterrupt) as stop:
                assert str(stop) == ("kept" if error is KeyboardInterrupt else "stop")
            assert folder.is_dir() == (not temporary or error is not None)


def test_before_the_attacks_nothing_is_promised() -> None:
    says = pytest.raises(KeyboardInterrupt, match="before the attacks. The same command begins")
    with says, finished_parts():
        raise KeyboardInterrupt
