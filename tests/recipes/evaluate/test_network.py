"""What `evaluate` measures: the figures of a run's own report, and any checkpoint that is safe."""

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import robust_plugin
from robust_plugin import IBP, ThreatModel
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import DataConfig, ThreatConfig
from robust_plugin.recipes.data.datasets import load_data, loader
from robust_plugin.recipes.evaluate.network import evaluate_network
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.models.registry import build_model

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, workplace: Path, words: Words
) -> Iterator[Path]:
    """A finished run, good enough for figures strictly between chance and all."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr(sys, "path", list(sys.path))
        options = ("--pretrain.epochs=6", "--finetune.epochs=6", "--threat.eps=20/255")
        assert main(words("hydra", out, *options, "--evaluation.autoattack=8")) == 0
        yield out


@pytest.fixture
def run(finished: Path, at_workplace: Path) -> Path:
    return finished


def of_weights(weights: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        "--model=tiny_networks:net",
        f"--weights={weights}",
        "--data.name=folder",
        "--data.folder=images",
        "--threat.eps=20/255",
        "--attacks=pgd",
        "--steps=3",
        "--restarts=2",
        "--device=cpu",
        *more,
    ]


def saved(out: Path) -> Report:
    return Report.from_json(out.read_text())


def test_a_run_folder_gives_the_figures_of_its_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--attacks", "pgd", "--out", str(tmp_path / "a.json")]) == 0
    report = Report.from_json(json.dumps(json.loads((run / "report.json").read_text())["report"]))
    again = saved(tmp_path / "a.json")
    assert again.rows == ("clean", "PGD-3x2")
    assert again.labels == report.labels and again.threat == report.threat
    assert all(again.flags[row] == report.flags[row] for row in again.rows)
    assert 0.3 < again.accuracy("PGD-3x2") < again.accuracy() <= 1  # figures that could differ
    out = capsys.readouterr().out
    assert out.startswith(str(again)) and "obfuscated gradients" in out


def test_autoattack_on_the_first_points_gives_the_reports_verdicts(run: Path) -> None:
    settings = of_run(run)
    report = evaluate_network(
        EvaluateConfig(**{**vars(settings), "attacks": ("autoattack",), "n": 8})
    ).report
    content = json.loads((run / "report.json").read_text())["report"]
    assert content["n"] == {"clean": 32, "PGD-3x2": 32, "AutoAttack": 8}
    assert "".join("01"[f] for f in report.flags["AutoAttack"]) == content["flags"]["AutoAttack"]
    assert report.n == 8


def test_of_run_reads_all_it_needs_from_the_folder(run: Path) -> None:
    settings = of_run(run)
    assert settings.model == "tiny_networks:net" and settings.weights == run / "model.safetensors"
    assert settings.data == DataConfig("folder", Path("images"), validation=0.25, batch_size=16)
    assert settings.threat == ThreatConfig("Linf", "20/255")
    assert (settings.steps, settings.restarts, settings.seed, settings.threads) == (3, 2, 0, 1)


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
    if certify == "cascade":  # which proves what any of its stages does
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


@pytest.mark.parametrize("kind", ["safetensors", "stage", "pt", "pt state_dict"])
def test_any_file_of_weights_gives_the_same_figures(kind: str, run: Path, tmp_path: Path) -> None:
    assert main(of_weights(run / "model.safetensors", f"--out={tmp_path / 'a.json'}")) == 0
    state = load_file(run / "model.safetensors")
    path = tmp_path / ("copy.safetensors" if kind in ("safetensors", "stage") else "copy.pt")
    if kind == "safetensors":
        save_file(state, path)  # nothing of ours beside the tensors
    elif kind == "stage":
        save_file({f"model/{k}": t for k, t in state.items()} | {"rng": torch.zeros(3)}, path)
    else:
        torch.save(state if kind == "pt" else {"state_dict": state, "epoch": 3}, path)
    assert main(of_weights(path, f"--out={tmp_path / 'b.json'}")) == 0
    assert saved(tmp_path / "a.json") == saved(tmp_path / "b.json")


def test_the_figures_are_those_of_the_core_on_the_test_points(run: Path, tmp_path: Path) -> None:
    assert main(of_weights(run / "model.safetensors", "--n=9", f"--out={tmp_path / 'a.json'}")) == 0
    model = build_model("tiny_networks:net", classes=4, shape=(3, 8, 8))
    model.load_state_dict(load_file(run / "model.safetensors"))
    data = load_data("folder", folder=Path("images"))
    x, y = next(iter(loader(data.test, batch_size=9, seed=0, epoch=0, shuffle=False)))
    model.eval()
    right = (model(x).argmax(1) == y).tolist()
    assert list(saved(tmp_path / "a.json").flags["clean"]) == right
    assert saved(tmp_path / "a.json").n == 9


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
    assert f"error: {message}" in _error(capsys)


def test_a_run_whose_test_points_are_cut_is_evaluated_on_the_same_ones(
    tmp_path: Path, words: Words, at_workplace: Path
) -> None:
    cut = ["--data.augmentation=resized-crop+flip", "--data.image-size=8"]
    run, again = tmp_path / "run", tmp_path / "again.json"
    assert main(words("magnitude", run, *cut)) == 0
    assert main(["evaluate", str(run), "--attack=pgd", "--checks=0", f"--out={again}"]) == 0
    content = json.loads((run / "report.json").read_text())["report"]
    assert saved(again) == Report.from_json(json.dumps(content))
    whole = load_data("folder", folder=Path("images"), validation=0.25, image_size=8).test
    cut_points = load_data(
        "folder",
        folder=Path("images"),
        validation=0.25,
        image_size=8,
        augmentation="resized-crop+flip",
    ).test
    assert not torch.equal(whole[0][0], cut_points[0][0])  # which points it is matters


def test_a_report_keeps_the_settings_the_seed_and_the_versions(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    options = ["--attack=pgd", "--n=9", "--steps=2", "--seed=7", "--checks=0"]
    assert main(["evaluate", str(run), *options, f"--out={out}"]) == 0
    text = (out / "report.json").read_text()
    made = json.loads(text)["evaluation"]
    expected = dataclasses.replace(of_run(run), attacks=("pgd",), n=9, steps=2, seed=7, checks=0)
    assert build(EvaluateConfig, made["settings"], where="report") == expected
    assert made["versions"]["torch"] == torch.__version__
    assert made["versions"]["robust_plugin"] == robust_plugin.__version__
    assert made["versions"]["pyautoattack"] == metadata.version("pyautoattack")
    report = Report.from_json(text)
    assert report == evaluate_network(expected).report and report.n == 9
    page = (out / "report.html").read_text()
    assert f"the first 9; {report.threat}; seed 7; torch {torch.__version__}, robust_plugin" in page
    assert "restarts: 2" in page and "steps: 2" in page  # the settings
    assert main(["evaluate", str(run), *options, f"--out={tmp_path / 'a.json'}"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["evaluation"] == made


def test_a_runs_report_keeps_the_settings_and_the_versions(run: Path) -> None:
    content = json.loads((run / "report.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert {"recipe": "HydraConfig", **content["settings"]} == config
    assert content["versions"]["torch"] == torch.__version__


class Bomb:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "torch zip member", "plain"])
def test_a_pickle_with_code_is_refused_and_not_run(
    how: str, tmp_path: Path, at_workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crater, path = tmp_path / "crater", tmp_path / "model.pt"
    if how == "torch":
        torch.save({"0.weight": Bomb(crater)}, path, _use_new_zipfile_serialization=False)
    elif how == "torch zip member":
        torch.save({"0.weight": torch.zeros(2), "more": Bomb(crater)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(crater)))
    assert main(of_weights(path, f"--out={tmp_path / 'a.json'}")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} holds no plain state_dict") and not crater.exists()
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "a.json").exists()
    pickle.loads(pickle.dumps(Bomb(crater)))
    assert crater.exists()  # the bomb is live


@pytest.mark.parametrize("content", [3, [torch.zeros(2)], {}, {"0.weight": "text"}])
def test_a_file_that_is_no_state_dict_is_named(
    content: Any, tmp_path: Path, at_workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert main(of_weights(tmp_path / "model.pt")) == 2
    error = capsys.readouterr().err
    assert "model.pt holds no plain state_dict" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--attacks=pdg", "attack is 'pdg'; legal: pgd, autoattack"),
        ("--attacks=torchattacks.PDG", "torchattacks has no 'PDG'; legal: GN, FGSM"),
        ("--attacks=torchattacks.CW", "torchattacks.CW: it drops negative logits"),
        ("--n=0", "n is 0; legal: 1 to 32"),
        ("--n=33", "n is 33; legal: 1 to 32"),
        ("--steps=0", "steps is 0"),
        ("--restarts=0", "restarts is 0"),
        ("--device=gpu", "device is 'gpu'"),
        ("--threat.eps=8/0", "eps is '8/0'"),
        ("--model=resnet1", "unknown model 'resnet1'; legal are digits-cnn"),
        ("--model=cnn-small", "the state does not fit the model; these differ: "),
        ("--weights=absent.pt", "there is no checkpoint at absent.pt"),
        ("--data.folder=absent", "no folder absent; expected in it: train/<class>/"),
    ],
)
def test_bad_input_is_named(
    option: str,
    message: str,
    tmp_path: Path,
    at_workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build_model("tiny_networks:net", classes=4, shape=(3, 8, 8))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    given = option.partition("=")[0] + "="
    kept = [w for w in of_weights(tmp_path / "model.safetensors") if not w.startswith(given)]
    assert main([*kept, option, f"--out={tmp_path / 'a.json'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "a.json").exists()


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


def test_a_cascade_by_the_command_has_a_journal_and_a_budget(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", str(run), "--attack", "pgd", "--n=12", "--threat.eps=1/2550", "--checks=0"]
    words += ["--certify=cascade-fixed", f"--journal={tmp_path / 'journal'}"]
    assert main([*words, f"--out={tmp_path / 'page'}"]) == 0
    assert '<p class="note">Proofs by IBP + CROWN + ' in (tmp_path / "page/report.html").read_text()
    assert main([*words, f"--out={tmp_path / 'a.json'}"]) == 0
    first = Report.from_json((tmp_path / "a.json").read_text())
    assert first.verdicts is not None and "verified by IBP" in first.verdicts
    assert f"{first.verdicts.count('verified by IBP')} verified by IBP" in capsys.readouterr().out

    def never(*_: Any) -> None:
        raise AssertionError("proved again")

    monkeypatch.setattr(IBP, "margins", never)
    assert main([*words, f"--out={tmp_path / 'b.json'}"]) == 0
    assert Report.from_json((tmp_path / "b.json").read_text()) == first
    assert main([*words, "--seconds=3"]) == 2
    assert "journal of another evaluation: seconds was None and is now 3.0" in _error(capsys)
    for more in (["--seconds=0"], ["--seconds=1", "--certify=ibp"]):
        assert main([*words, *more]) == 2
        assert "legal: above 0, with a cascade" in _error(capsys)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_folder_gets_tables_a_page_and_tensors(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "evaluation"
    words = ["evaluate", str(run), "--config", "evaluate/adversarial-pruning", "--out", str(out)]
    short = ["--attack", "autoattack", "fab", "--eps", "0.4", "--norm", "Linf", "--n", "12"]
    assert main([*words, *short, "--batch-size", "6", "--checks", "12"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "report.json", "report.txt", "report.html", "adversarial.pt", "robustbench.json"
    }  # fmt: skip
    report = saved(out / "report.json")
    printed = capsys.readouterr().out
    assert report.rows == ("clean", "AutoAttack", "minimum norm (FAB-T)") and report.n == 12
    assert report.accuracy("worst case") < report.accuracy()  # so that there are examples
    assert "   0.031 = 0.031000" in printed and "   8/255 = 0.031373" in printed
    assert "made against the parent" in printed  # the run's own dense network
    assert (out / "report.txt").read_text().strip() in printed
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "http" not in page
    for picture in ("security curve", "accuracy by class", "adversarial examples"):
        assert f'alt="{picture}"' in page
    assert "obfuscated gradients" in page
    entry = json.loads((out / "robustbench.json").read_text())
    assert entry["eps"] == "0.4" and entry["n"] == 12
    assert float(entry["autoattack_acc"]) == pytest.approx(
        100 * report.accuracy("AutoAttack"), abs=0.01
    )
    images = torch.load(out / "adversarial.pt", weights_only=True)
    assert images["inputs"].shape == images["AutoAttack"].shape and len(images["labels"]) == 12


def test_checks_can_be_left_out_and_the_screening_names_itself_everywhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    words = ["evaluate", str(run), "--attack=screen", "--n=8", "--checks=0", f"--out={out}"]
    assert main(words) == 0
    assert "obfuscated" not in capsys.readouterr().out
    unseen = ["evaluate", str(run), "--attack=screen", "--norm=L1", "--eps=1", "--n=8"]
    assert main(unseen) == 0
    assert "no checks for obfuscated gradients in L1 eps=1: they take" in capsys.readouterr().out
    for name in ("report.txt", "report.json", "report.html"):
        assert "screening (apgd-ce, apgd-t)" in (out / name).read_text()
    assert not (out / "robustbench.json").exists()  # a screening is no entry


def test_bad_settings_of_evaluate(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for words, says in [
        (["--attack=cw"], "attack is 'cw'; legal: pgd, autoattack"),
        (
            ["--config=evaluate/none"],
            "there is no preset or file evaluate/none; robust-plugin list",
        ),
        (["--config=hydra/digits"], "unknown key"),
        ([f"--out={taken}"], "is a file; give --out a folder"),
        (["--eps=-1"], "eps is '-1'"),
        (["--n=0"], "n is 0; legal: 1 to 32"),
        (["--attack=fab", "--radii", "abc"], "eps is 'abc'"),
        (["--threads=0"], "threads is 0; legal: 1 or more"),
        (["--checks=-3"], "checks is -3; legal: 0 or more"),
        ([f"--out={run}"], "is a run's own folder, whose report would be lost"),
        (["--attack=fab", "--norm=L1"], "norm"),
        (
            ["--attack=pgd", "--attack", "screen"],
            "--attacks is given twice; give all of them",
        ),
        (["--attack=torchattacks.APGD", "--norm=L1"], "torchattacks.APGD failed in L1 eps="),
    ]:
        with contextlib.suppress(SystemExit):  # of the parser, for what is no setting's value
            assert main(["evaluate", str(run), *words]) == 2
        shown = capsys.readouterr()
        assert says in shown.err + shown.out
    assert taken.read_text() == "mine"


def test_a_network_that_is_not_for_the_data_is_named(
    run: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "wrong_networks.py").write_text(
        "from torch import nn\n\n\ndef flat():\n    return nn.Linear(7, 10)\n\n\n"
        "def broken():\n    raise KeyError('width')\n"
    )
    for name, says in (
        ("flat", "model 'wrong_networks:flat' does not take inputs of shape (1, 3, 8, 8)"),
        ("broken", "model 'wrong_networks:broken' failed: KeyError: 'width'"),
    ):
        weights = workplace / f"{name}.safetensors"
        save_file(nn.Linear(7, 10).state_dict(), weights)
        words = [f"--model=wrong_networks:{name}", f"--weights={weights}", "--attack=pgd"]
        assert main(["evaluate", str(run), *words]) == 2
        assert says in _error(capsys)


def test_two_processes_of_torchrun_give_the_figures_of_one(run: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(run), "--attack=screen", "--n=12", "--batch-size=4", "--checks=0"]
    assert main([*words, f"--out={tmp_path / 'one.json'}"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Behind --, or torchrun takes --n for one of its own options.
    command = [*torchrun, "-m", "--", "robust_plugin.recipes.cli", *words]
    found = subprocess.run(
        [*command, f"--out={tmp_path / 'two.json'}"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    assert saved(tmp_path / "two.json") == saved(tmp_path / "one.json")
    assert found.stdout.count("screening (apgd-ce, apgd-t)") == 1  # one of them speaks
