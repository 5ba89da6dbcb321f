"""Certifiers by name: which points they prove, and what they refuse."""

from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from printed import error_of, saved
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from robust_plugin import IBP, ThreatModel
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.certificates.smoothing import Smoothed
from robust_plugin.certificates.verifier import Verifier
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.evaluate import CertifierName
from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.evaluate.certifiers import certifier_of, smooth
from robust_plugin.recipes.models.registry import build_model


@pytest.mark.parametrize(
    ("certify", "name"),
    [
        ("ibp", "IBP"),
        ("crown-ibp", "CROWN-IBP"),
        ("cascade", "IBP + CROWN + alpha-CROWN-fixed + alpha-CROWN"),
    ],
)
def test_certify_proves_points_and_names_the_prover(
    certify: str, name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    options = ["--threat.eps=0.002", "--n=32", "--attack=pgd", "--steps=3", "--checks=0"]
    assert main(["evaluate", str(run), f"--certify={certify}", *options, "--out", str(out)]) == 0
    report = saved(out)
    assert report.certifier == name and f"certified by {name}" in capsys.readouterr().out
    model = build_model("tiny_networks:net", classes=4, shape=(3, 8, 8))
    model.load_state_dict(load_file(run / "model.safetensors"))
    test = load_data("folder", folder=Path("images")).test
    x, y = next(iter(loader(test, batch_size=32, seed=0, epoch=0, shuffle=False)))
    threat = ThreatModel("Linf", "0.002")
    best = IBP(threat)(model.eval(), x, y)
    if certify != "ibp":
        best = LiRPA(threat, "CROWN-IBP")(model, x, y)
    assert 0 < sum(report.certified or ()) <= 32
    if certify == "cascade":  # it proves what any of its methods proves
        assert sum(report.certified or ()) >= int(best.sum())
    else:
        assert list(report.certified or ()) == best.tolist()


@pytest.mark.parametrize("certify", ["crown-ibp", "cascade"])
def test_certify_in_l2_says_who_can(
    certify: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), f"--certify={certify}", "--threat.norm=L2", "--attack=pgd"]
    assert main(words) == 2
    assert "LiRPA takes Linf" in capsys.readouterr().err


def test_a_cascade_by_the_command_has_a_journal_and_a_budget(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", str(run), "--attack", "pgd", "--n=12", "--threat.eps=1/2550", "--checks=0"]
    words += ["--certify=cascade-fixed", f"--journal={tmp_path / 'journal'}"]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "journal").exists()  # proofs that are timed are not the evaluation's
    assert main([*words, f"--out={tmp_path / 'page'}"]) == 0
    assert "<p>Proofs by IBP + CROWN + " in (tmp_path / "page/report.html").read_text()
    assert main([*words, f"--out={tmp_path / 'a.json'}"]) == 0
    first = Report.from_json((tmp_path / "a.json").read_text())
    assert first.verdicts is not None and "verified by IBP" in first.verdicts
    assert f"{first.verdicts.count('verified by IBP')} verified by IBP" in capsys.readouterr().out

    def never(*_: Any) -> None:
        raise AssertionError("proved again")

    monkeypatch.setattr(IBP, "margins", never)
    words.append("--quiet")  # the time that is left is estimated by a few proofs of its own
    assert main([*words, f"--out={tmp_path / 'b.json'}"]) == 0
    assert Report.from_json((tmp_path / "b.json").read_text()) == first
    assert main([*words, "--seconds=3"]) == 2
    assert "journal of another evaluation: seconds was None and is now 3.0" in error_of(capsys)
    for more in (["--seconds=0"], ["--seconds=1", "--certify=ibp"]):
        assert main([*words, *more]) == 2
        assert "legal: above 0, with a cascade" in error_of(capsys)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ibp", IBP), ("crown-ibp", LiRPA), ("cascade", Verifier), ("cascade-fixed", Verifier)],
)
def test_a_name_gives_a_certifier_of_its_kind(name: CertifierName, kind: type) -> None:
    assert type(certifier_of(name, ThreatModel("Linf", 0.1))) is kind


def test_none_is_no_certifier_and_an_unknown_name_is_refused() -> None:
    threat = ThreatModel("Linf", 0.1)
    assert certifier_of("none", threat) is None
    with pytest.raises(ValueError, match="certify is 'crown'; legal: none, ibp, crown-ibp, casc"):
        certifier_of("crown", threat)  # type: ignore[arg-type]


def test_smoothing_of_a_constant_classifier_has_the_radius_of_unanimous_votes(
    tmp_path: Path,
) -> None:
    """All n votes agree, so the Clopper-Pearson bound is alpha ** (1 / n): a closed-form radius."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(len(x), 3)

    points = TensorDataset(torch.rand(6, 1, 2, 2), torch.tensor([2, 0, 2, 1, 2, 2]))
    smoothed = Smoothed(0.5, n=200, seed=0)
    found = smooth(Constant().eval(), points, 4, smoothed, tmp_path, journal=tmp_path / "journal")
    assert found["labels"] == [2, 0, 2, 1] and found["predictions"] == [2] * 4
    radius = 0.5 * NormalDist().inv_cdf(smoothed.alpha ** (1 / 200))
    assert found["radii"] == pytest.approx([radius] * 4, rel=1e-4)
    assert found["acr"] == pytest.approx(radius / 2, rel=1e-4)  # two of four points are right
    assert (found["sigma"], found["n"], found["alpha"]) == (0.5, 200, smoothed.alpha)
    assert (tmp_path / "smoothing.txt").is_file() and (tmp_path / "smoothing.png").is_file()
