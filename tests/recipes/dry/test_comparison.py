"""The plan of a comparison counts and times every training, and nothing is written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.dry.measure import Rehearsal

BASE: dict[str, Any] = {
    "model": "tiny_networks:net",
    "data": {"name": "folder", "folder": "images", "batch_size": 16, "validation": 0.25},
    "threat": {"eps": "2/255"},
    "objective": {"steps": 2},
    "pretrain": {"epochs": 2},
    "prune": {"epochs": 1},
    "finetune": {"epochs": 3},
    "evaluation": {"steps": 2, "restarts": 1, "autoattack": 12, "curve": 0},
    "device": "cpu",
    "threads": 1,
}
ROWS = {
    "LWM": {"recipe": "magnitude"},
    "iterative": {"recipe": "magnitude", "rounds": 3},
    "HARP": {"recipe": "harp"},
    "mask alone": {"recipe": "hydra", "finetune": {"epochs": 0}},
    "gradual": {"recipe": "gradual"},
}
AXES = {"densities": [0.3, 0.1], "seeds": [0, 1, 2], "lrs": [0.05, 0.1], "jobs": 2}


def planned(tmp_path: Path, **more: Any) -> int:
    file, content = tmp_path / "mine.yaml", {"base": BASE, "rows": ROWS, **AXES, **more}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return main(["compare", f"--config={file}", f"--out={tmp_path / 'out'}", "--dry-run"])


def test_every_training_is_counted_with_its_time(
    tmp_path: Path,
    at_workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With given seconds per stage, the sums are those computed by hand."""
    seconds = {"pretrain": 1000.0, "prune": 100.0, "finetune": 10.0}
    seconds |= {"finetune-1": 3.0, "finetune-2": 3.0, "shrink": 20.0}
    measured = []

    def stage_seconds(run: Rehearsal, name: str, stage: object) -> float:
        measured.append(run.watch.seconds(name))
        return seconds[name]

    monkeypatch.setattr(Rehearsal, "stage_seconds", stage_seconds)
    monkeypatch.setattr(Rehearsal, "test_seconds", lambda *_: {"PGD": 0.75, "AutoAttack": 0.25})
    assert planned(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "compare: 5 rows x 2 densities x 3 seeds x 2 learning rates: 60 trainings after those of"
    )
    assert [line.split()[-5:] for line in lines[2:8]] == [
        ["3", "0:00:00", "0:16:40", "0:00:01", "0:50:03"],  # 3 (1000 + 1)
        ["6", "0:00:00", "0:00:10", "0:00:01", "0:02:06"],  # 6 (2 x 10 + 1)
        ["6", "0:00:00", "0:00:16", "0:00:01", "0:03:18"],  # 6 (2 x 16 + 1)
        ["6", "0:01:40", "0:00:10", "0:00:01", "0:12:06"],  # 6 (100 + 2 x 10 + 1)
        ["6", "0:01:40", "0:00:00", "0:00:01", "0:10:06"],  # 6 (100 + 1)
        ["6", "0:00:00", "0:02:10", "0:00:01", "0:26:06"],  # 6 (2 (20 + 100 + 10) + 1)
    ]
    assert lines[8].split() == ["sum", "1:43:45"]
    assert lines[9].startswith("2 side by side") and lines[9].endswith("0:51:52")
    assert lines[10].startswith("report.html and the rest go to")
    assert len(measured) == 11 and min(measured) > 0  # real steps of every stage
    assert not (tmp_path / "out").exists()
    # With rates chosen on one of the three seeds, the others train once.
    assert planned(tmp_path, tuning_seeds=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ": 40 trainings after those of" in lines[0]
    assert [line.split()[-1] for line in lines[2:8]] == [
        *["0:50:03", "0:01:26", "0:02:14", "0:11:26", "0:10:06"],  # 6 + 8 x 10, and so on
        "0:17:26",  # 6 + 8 (20 + 100 + 10)
    ]


def test_a_dense_network_that_is_there_is_not_trained(
    tmp_path: Path, at_workplace: Path, run_tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tiny("hydra", tmp_path / "run")
    capsys.readouterr()
    checkpoint = str(tmp_path / "run" / "pretrain.best.safetensors")
    assert planned(tmp_path, base={**BASE, "checkpoint": checkpoint}) == 0
    dense = capsys.readouterr().out.splitlines()[2].split()
    assert dense[:4] == ["dense", "3", "0:00:00", "0:00:00"]


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rows": {"LWM": {"recipe": "lwm"}}}, "row 'LWM' has recipe 'lwm'; legal"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; legal: at least one, and none twice"),
        ({"densities": [2.0]}, "density is 2.0"),
    ],
)
def test_it_refuses_what_the_comparison_refuses(
    more: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(tmp_path, **more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
