"""Settings from a finished run, and options that have no effect."""

import shutil
from pathlib import Path

import pytest
from printed import error_of

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.schema import DataConfig, ThreatConfig
from robust_plugin.recipes.evaluate.settings import check_options, of_run


def test_of_run_reads_all_it_needs_from_the_folder(run: Path) -> None:
    settings = of_run(run)
    assert (
        settings.model == "tiny_networks:net" and settings.checkpoint == run / "model.safetensors"
    )
    assert settings.data == DataConfig("folder", Path("images"), validation=0.25, batch_size=16)
    assert settings.threat == ThreatConfig("Linf", "20/255")
    assert (settings.steps, settings.restarts, settings.seed, settings.threads) == (3, 2, 0, 1)


def test_a_folder_without_a_finished_run_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for folder in (tmp_path / "absent", tmp_path):
        assert main(["evaluate", str(folder)]) == 2
        assert f"{folder} holds no finished run" in capsys.readouterr().err
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "model.safetensors").unlink()
    assert main(["evaluate", str(half)]) == 2
    assert f"{half} holds no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack=screen", "--steps=100"], "steps is 100, but only pgd takes steps, and attacks"),
        (["--attack=screen", "--restarts=9"], "restarts is 9, but only pgd takes restarts"),
        (["--attack=pgd", "--radii", "0.1", "0.2"], "radii is 0.1, 0.2, but only the security"),
        (["--attack=pgd", "--journal=absent"], "journal is absent, but only AutoAttack and cascad"),
        (["--attack=pgd", "--checks=0", "--parent=a.pt"], "parent is a.pt, but only the checks"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(
    options: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *options]) == 2
    assert f"error: {message}" in error_of(capsys)


def test_an_option_that_is_read_or_has_its_default_is_accepted() -> None:
    given = EvaluateConfig(
        attacks=("pgd", "fab", "screen"),
        steps=3,
        restarts=2,
        radii=("0.1",),
        journal=Path("journal"),
        parent=Path("dense.pt"),
    )
    check_options(given, EvaluateConfig())
    alone = EvaluateConfig(attacks=("screen",), steps=3, checks=0)
    check_options(alone, EvaluateConfig(steps=3))  # from a run folder, so not an option
    with pytest.raises(ValueError, match="steps is 3, but only pgd takes steps"):
        check_options(alone, EvaluateConfig())
