"""Files are written whole or not at all, and tensors come back as they were."""

import os
import stat
from pathlib import Path

import pytest
import torch

from robust_plugin.runtime import files
from robust_plugin.runtime.files import (
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
