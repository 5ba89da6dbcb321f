"""Journals and fingerprints: what they store, compare and refuse."""

import hashlib
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_plugin.runtime.journal import Fingerprint, Journal, by_points, each_unit


def test_a_journal_killed_while_it_was_made_can_be_made_again(tmp_path):
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / ".fingerprint.json.7.partial").write_text("{")
    Journal(tmp_path / "j", {"of": "this"}).put("first", {"x": torch.ones(1)})
    assert Journal(tmp_path / "j", {"of": "this"}).get("first") is not None
    assert (tmp_path / "j" / "fingerprint.json").is_file()


def test_a_journal_that_another_process_begins_at_this_moment(tmp_path, monkeypatch):
    """Its fingerprint comes between two looks at the folder."""
    folder = tmp_path / "j"
    is_file = Path.is_file

    def after_the_other(path):
        if path == folder / "fingerprint.json" and not folder.exists():
            with monkeypatch.context() as back:
                back.setattr(Path, "is_file", is_file)
                Journal(folder, {"of": "this"}).put("first", {"x": torch.ones(1)})
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", after_the_other)
    assert Journal(folder, {"of": "this"}).get("first") is not None
    listed, iterdir = [], Path.iterdir

    def before_it_was_there(path):
        if path == folder and not listed:
            listed.append(path)
            return iter([])
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", before_it_was_there)
    assert Journal(folder, {"of": "this"}).get("first") is not None


def test_a_journal_knows_networks_of_the_same_weights_apart(tmp_path):
    journal = Journal(tmp_path / "j", {"of": "this"})
    logits = torch.randn(5, 3)
    journal.check_answers(logits)
    journal.check_answers(logits * (1 + 1e-6))  # other threads round otherwise
    with pytest.raises(ValueError, match="of the same weights, but its outputs are others"):
        journal.check_answers(logits * 1.01)
    (tmp_path / "j" / "fingerprint.json").write_text("{")
    with pytest.raises(ValueError, match="fingerprint.json is damaged"):
        Journal(tmp_path / "j", {"of": "this"})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; give a folder"):
        Journal(tmp_path / "file", {})


def test_units_come_back_as_they_were_put(tmp_path):
    journal = Journal(tmp_path / "new" / "folder", {"of": "this"})
    put = {"x": torch.randn(3, 2), "rows": torch.tensor([4, 1])}
    journal.put("first", put)
    found = Journal(tmp_path / "new" / "folder", {"of": "this"}).get("first")
    assert found.keys() == put.keys() and all(torch.equal(found[k], put[k]) for k in put)
    assert journal.get("second") is None


def test_another_computation_and_other_files_are_refused(tmp_path):
    Journal(tmp_path / "j", {"seed": "0", "points": "abc"})
    with pytest.raises(ValueError, match="seed was 0 and is now 1. Give another folder"):
        Journal(tmp_path / "j", {"seed": "1", "points": "abc"})
    with pytest.raises(ValueError, match="extra was None and is now 2"):
        Journal(tmp_path / "j", {"seed": "0", "points": "abc", "extra": "2"})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(ValueError, match="photos is not empty and no journal"):
        Journal(tmp_path / "photos", {})


def test_each_unit_is_computed_once_and_when_it_is_asked_for(tmp_path):
    asked = []

    def compute(work):
        asked.append(work)
        return {"x": torch.full((2,), float(work))}

    units = {"a": 1, "b": 2, "c": 3}
    first = each_unit(units, compute, Journal(tmp_path, {}))
    assert asked == []
    assert next(first)[0] == 1 and next(first)[0] == 2 and asked == [1, 2]
    found = list(each_unit(units, compute, Journal(tmp_path, {})))
    assert asked == [1, 2, 3]
    assert [(work, result["x"].tolist()) for work, result in found] == [
        (work, [work, work]) for work in (1, 2, 3)
    ]
    assert len(list(each_unit(units, compute, None))) == 3 and asked == [1, 2, 3] * 2


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_points_by_units_are_all_points_in_their_order(tmp_path, size):
    x, seen, slices = torch.rand(7, 2), [], []

    def compute(rows):
        slices.append(rows)
        return {"double": 2 * x[rows]}

    for _ in range(2):
        found = by_points(7, size, compute, journal=Journal(tmp_path, {}), show=seen.append)
        assert torch.equal(found["double"], 2 * x)
    ends = [*range(size, 7, size), 7]
    assert seen == ends * 2
    assert [min(rows.stop, 7) for rows in slices] == ends  # once: the second time it reads


def test_a_fingerprint_is_the_sha256_of_names_types_and_values():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    memory = b"torch.float32(2, 2)" + b"".join(
        struct.pack("<f", value) for value in (1.0, 2.0, 3.0, 4.0)
    )
    assert str(Fingerprint(x)) == hashlib.sha256(memory).hexdigest()
    assert str(Fingerprint(x.t())) != str(Fingerprint(x))
    assert str(Fingerprint(x.t().contiguous().t())) == str(Fingerprint(x))  # values, not strides
    assert str(Fingerprint(x.view(4))) != str(Fingerprint(x)) != str(Fingerprint(x.double()))


def test_fingerprints_tell_networks_apart_by_weights_buffers_and_layers():
    def network(*layers):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), *layers)

    one, same, other = network(nn.ReLU()), network(nn.ReLU()), network(nn.ELU())
    assert str(Fingerprint(one)) == str(Fingerprint(same)) != str(Fingerprint(other))
    same[1].running_mean[0] += 1
    assert str(Fingerprint(one)) != str(Fingerprint(same))
