"""Prune phases that several trainings share."""

import json
from pathlib import Path

from robust_plugin.recipes.compare.job_runs import share_prune_phase


def test_only_the_prune_phase_is_copied_and_nothing_is_overwritten(tmp_path: Path) -> None:
    source, target = tmp_path / "first", tmp_path / "second"
    source.mkdir()
    for name in ("prune.safetensors", "prune.best.safetensors", "finetune.safetensors"):
        (source / name).write_text(name)
    lines = [json.dumps({"stage": stage}) + "\n" for stage in ("prune", "prune", "finetune")]
    (source / "log.jsonl").write_text("".join(lines))
    share_prune_phase(source, target)
    names = {path.name for path in target.iterdir()}
    assert names == {"prune.safetensors", "prune.best.safetensors", "log.jsonl"}
    assert (target / "log.jsonl").read_text() == "".join(lines[:2])
    (target / "prune.safetensors").write_text("its own")
    (target / "log.jsonl").write_text("its own")
    share_prune_phase(source, target)
    assert (target / "prune.safetensors").read_text() == "its own"
    assert (target / "log.jsonl").read_text() == "its own"
