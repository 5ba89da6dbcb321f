"""Attacks by their names on the command line."""

from pathlib import Path

import pytest

from robust_plugin import MinimumNorm, ThreatModel, pgd
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.evaluate.attacks_by_name import attack_by_name, journal_of

THREAT = ThreatModel("Linf", 0.1)


def test_attacks_of_libraries_and_a_journal_by_the_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), "--attacks", "pgd", "torchattacks.APGD", "screen", "--n=16"]
    journal, outs = tmp_path / "journal", [tmp_path / "a.json", tmp_path / "b.json"]
    reports = []
    for out in outs:  # the second reads what the first wrote
        assert main([*words, f"--journal={journal}", f"--out={out}"]) == 0
        reports.append(Report.from_json(out.read_text()))
    assert reports[0] == reports[1]
    screening = "screening (apgd-ce, apgd-t)"
    assert reports[0].rows == ("clean", "PGD-3x2", "torchattacks.APGD", screening)
    assert screening in capsys.readouterr().out
    assert {path.name for path in journal.iterdir()} == {"screen"}
    assert {path.name for path in (journal / "screen").iterdir()} == {
        "fingerprint.json",
        "answers.safetensors",
        "apgd-ce-00000.safetensors",
        "apgd-t-00000.safetensors",
    }
    assert main([*words, "--threat.eps=1/255", f"--journal={journal}"]) == 2
    assert "journal of another evaluation: threat model was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("autoattack", "standard"),
        ("autoattack-plus", "plus"),
        ("autoattack-rand", "rand"),
        ("screen", "screen"),
    ],
)
def test_each_name_of_autoattack_is_a_version_with_a_journal_of_its_own(
    name: str, version: str
) -> None:
    config = EvaluateConfig(seed=7, batch_size=9, journal=Path("journals"))
    attack = attack_by_name(name, config, THREAT)
    assert isinstance(attack, AutoAttack) and attack.threat == THREAT
    assert (attack.version, attack.seed, attack.batch_size) == (version, 7, 9)
    assert attack.journal == journal_of(config, name) == Path("journals") / name


def test_without_a_journal_folder_there_is_no_journal() -> None:
    attack = attack_by_name("screen", EvaluateConfig(), THREAT)
    assert isinstance(attack, AutoAttack) and attack.journal is None


def test_pgd_and_fab_take_the_settings() -> None:
    config = EvaluateConfig(steps=6, restarts=4)
    assert attack_by_name("pgd", config, THREAT) == pgd(THREAT, steps=6, restarts=4, keep="best")
    assert attack_by_name("fab", config, THREAT) == MinimumNorm(THREAT)


@pytest.mark.parametrize("name", ["", "PGD", "torchattacks", "torchattacks.", "foolbox.PGD"])
def test_an_unknown_name_is_refused_with_the_legal_ones(name: str) -> None:
    legal = "pgd, autoattack, autoattack-plus, autoattack-rand, screen, fab, torchattacks.NAME"
    with pytest.raises(ValueError, match=f"attack is '{name}'; legal: {legal}"):
        attack_by_name(name, EvaluateConfig(), THREAT)
