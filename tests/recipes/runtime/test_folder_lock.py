"""Locks of output folders, against a second process and after one that was killed."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_disk import small_disk

from robust_plugin.recipes.runtime import folder_lock
from robust_plugin.recipes.runtime.folder_lock import FolderInUse, locked

# A process that loads the module alone, since torch takes seconds; it says when it has the lock.
HOLDER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("folder_lock", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.locked(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, folder_lock.__file__, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_who_holds_it_until_the_first_is_killed(
    tmp_path: Path,
) -> None:
    out = tmp_path / "runs" / "a"
    first = holder(out)
    try:
        with pytest.raises(FolderInUse) as error, locked(out):
            pass
        assert re.fullmatch(
            rf"{out} is in use by process {first.pid} on {socket.gethostname()}, since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+; wait until it has ended or stop it, or give "
            r"another --out\.",
            str(error.value),
        )
        with locked(tmp_path / "runs" / "b"):  # another folder is free
            pass
    finally:
        first.kill()
        first.wait()
    assert list(out.iterdir()) == [out / ".in-use"]  # what a killed process leaves behind
    with locked(out):
        assert f'"pid": {os.getpid()}' in (out / ".in-use").read_text()
    assert not (out / ".in-use").exists()


def test_two_commands_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    refused = pytest.raises(FolderInUse, match=f"process {os.getpid()} on")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_that_stays_empty_is_removed_and_one_with_files_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), locked(tmp_path / "a" / "b"):
        raise ValueError("refused")
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "report.json").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["report.json"]
    empty = tmp_path / "mine"
    empty.mkdir()
    with locked(empty):
        pass
    assert empty.is_dir()  # it was there before


def test_a_lock_on_a_file_that_is_gone_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command removes its file between opening and locking."""
    lock, tries = folder_lock._lock, []

    def slow(handle: int) -> bool:
        tries.append(handle)
        if len(tries) == 1:
            (tmp_path / ".in-use").unlink()
        return lock(handle)

    monkeypatch.setattr(folder_lock, "_lock", slow)
    with locked(tmp_path):
        assert len(tries) == 2 and (tmp_path / ".in-use").is_file()
        with pytest.raises(FolderInUse), locked(tmp_path):
            pass


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        refused = pytest.raises(ValueError, match=rf"cannot write to the folder {folder}: .*--out")
        with refused, locked(folder):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        (disk / "fill").write_bytes(bytes(8192))
        with pytest.raises(ValueError, match="No space left on device; free some"), locked(disk):
            pass
        assert [path.name for path in disk.iterdir()] == ["fill"]
