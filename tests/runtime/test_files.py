"""Files are written whole or not at all, and tensors come back as they were."""

import os
import stat
from pathlib import Path

import pytest
import torch
from small_disk import enlarge, small_disk

from robust_plugin.runtime import files
from robust_plugin.runtime.files import (
    DiskFull,
    check_writable,
    is_partial,
    read_tensors,
    replacing,
    write_bytes,
    write_tensors,
    write_text,
)


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one\r\nε\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\r\n\xce\xb5\n"
    write_bytes(tmp_path / "a.txt", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00\xff"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and is_partial(partial)
        assert partial.parent == path.parent  # another file system could not replace it at once
    assert path.read_text() == "new" and not is_partial(path)
    with pytest.raises(KeyError), replacing(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = os.replace

    def flush(number: int) -> None:
        assert stat.S_ISREG(os.fstat(number).st_mode)
        done.append("flush")

    def move(source: Path, target: Path) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", flush)
    monkeypatch.setattr(files.os, "replace", move)
    write_text(tmp_path / "a", "text")
    write_tensors(tmp_path / "b", {"x": torch.ones(2)}, {})
    assert done == ["flush", "replace"] * 2


@pytest.mark.parametrize("kind", ["text", "bytes", "tensors", "large text"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        if kind == "tensors":
            write_tensors(path, {"x": torch.ones(30_000)}, {})
        elif kind == "bytes":
            write_bytes(path, bytes(120_000))
        else:
            write_text(path, "x" * (10**7 if kind == "large text" else 120_000))

    with small_disk(tmp_path / "disk", 64) as disk:
        write_text(disk / "a", "old")
        with pytest.raises(
            DiskFull, match="no space left on the disk to write .*disk/a;"
        ) as caught:
            write(disk / "a")
        assert str(caught.value).endswith("give the same command again to continue.")
        assert [path.name for path in disk.iterdir()] == ["a"]
        assert (disk / "a").read_text() == "old"
        enlarge(disk, 20_000)
        write(disk / "a")
        assert (disk / "a").stat().st_size >= 120_000


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_device_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with (
        pytest.raises(DiskFull, match="to write .*a; nothing half-written"),
        replacing(tmp_path / "a") as partial,
    ):
        partial.symlink_to("/dev/full")
        partial.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "a", "text")


def test_tensors_and_content_come_back(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    tensors = {"tied": weight, "again": weight, "turned": weight.t(), "whole": torch.arange(5)}
    content = {"steps": 3, "names": ["a", "b"], "rate": 0.1, "none": None}
    write_tensors(tmp_path / "a.safetensors", tensors, content)
    found, again = read_tensors(tmp_path / "a.safetensors")
    assert again == content and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_what_cannot_be_written_or_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder .*nowhere to write a to"):
        write_tensors(tmp_path / "nowhere" / "a", {}, {})
    for content in ({"a": float("nan")}, {"a": {1}}):
        with pytest.raises(ValueError, match="have to be finite numbers, strings, lists"):
            write_tensors(tmp_path / "a", {}, content)
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        read_tensors(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="a is truncated or no safetensors file"):
        read_tensors(tmp_path / "a")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "inner")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with small_disk(tmp_path / "disk", 8) as disk:
        check_writable(disk / "run")
        write_bytes(disk / "fill", bytes(8192))
        with pytest.raises(ValueError, match="disk/run: No space left on device; give another"):
            check_writable(disk / "run")
    with (
        small_disk(tmp_path / "read only", 8, "ro") as disk,
        pytest.raises(ValueError, match="cannot write to the folder .*only/run: Read-only file"),
    ):
        check_writable(disk / "run")
