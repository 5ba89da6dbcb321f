"""What an evaluation works on is loaded, and what cannot work is refused at once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robust_plugin.recipes.evaluate.prepared import prepared, refuse_folder
from robust_plugin.recipes.evaluate.settings import of_run


def test_the_network_and_the_first_points_are_loaded(run: Path) -> None:
    config = replace(of_run(run), n=5, radii=("1/255",))
    work = prepared(config, None)
    assert not work.model.training and len(work.test) == 5  # type: ignore[arg-type]
    state = load_file(run / "model.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in work.model.state_dict().items())
    assert work.threat == config.threat.build() and work.radii == ("1/255",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0; legal: 1 to 32"),
        ({"n": 33}, "n is 33; legal: 1 to 32"),
        ({"checks": -1}, "checks is -1; legal: 0 or more"),
        ({"attacks": ("pdg",)}, "attack is 'pdg'"),
        ({"radii": ("1/0",)}, "'1/0'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    change: dict[str, object], message: str, run: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(replace(of_run(run), **change), None)  # type: ignore[arg-type]


def test_reports_do_not_go_into_the_folder_of_a_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{run} is a run's own folder, .* {run}/evaluation"):
        refuse_folder(run)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give --out a folder"):
        refuse_folder(tmp_path / "file")
    refuse_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
