"""The command ``evaluate``: its figures, the files it writes, and the checkpoints it refuses."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from printed import error_of, saved
from safetensors.torch import load_file, save_file
from torch import nn

import robust_plugin
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.evaluate.network import evaluate_network
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.models.registry import build_model

Words = Callable[..., list[str]]


def of_weights(weights: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        "--model=tiny_networks:net",
        f"--checkpoint={weights}",
        "--data.name=folder",
        "--data.folder=images",
        "--threat.eps=20/255",
        "--attacks=pgd",
        "--steps=3",
        "--restarts=2",
        "--device=cpu",
        *more,
    ]


@pytest.mark.parametrize("kind", ["safetensors", "stage", "pt", "pt state_dict"])
def test_any_file_of_weights_gives_the_same_figures(kind: str, run: Path, tmp_path: Path) -> None:
    assert main(of_weights(run / "model.safetensors", f"--out={tmp_path / 'a.json'}")) == 0
    state = load_file(run / "model.safetensors")
    path = tmp_path / ("copy.safetensors" if kind in ("safetensors", "stage") else "copy.pt")
    if kind == "safetensors":
        save_file(state, path)  # a file with tensors only, without our metadata
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
    assert not torch.equal(whole[0][0], cut_points[0][0])  # so the two sets of points differ


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
    assert "the first 9 test points" in page and f"threat model is {report.threat};" in page
    assert "the seed is 7." in page and f"torch {torch.__version__}" in page
    assert f"robust-plugin evaluate {run} --attack=pgd --n=9" in page  # the command
    assert "restarts: 2" in page and "steps: 2" in page  # the settings
    assert main(["evaluate", str(run), *options, f"--out={tmp_path / 'a.json'}"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["evaluation"] == made


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
    assert crater.exists()  # without the refusal, the pickle runs its code


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
        ("--checkpoint=absent.pt", "there is no checkpoint at absent.pt"),
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
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for heading in ("against the radius", "By class", "Examples", "Confusion under attack"):
        assert re.search(f"<h2>[^<]*{heading}</h2>", page)
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
    assert not (out / "robustbench.json").exists()  # a screening is no RobustBench entry


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
        (["--config=hydra/digits"], "unknown setting"),
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
        with contextlib.suppress(SystemExit):  # the parser exits for an illegal value
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
        words = [f"--model=wrong_networks:{name}", f"--checkpoint={weights}", "--attack=pgd"]
        assert main(["evaluate", str(run), *words]) == 2
        assert says in error_of(capsys)


def test_two_processes_of_torchrun_give_the_figures_of_one(run: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(run), "--attack=screen", "--n=12", "--batch-size=4", "--checks=0"]
    assert main([*words, f"--out={tmp_path / 'one.json'}"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Behind --, because torchrun would read --n as one of its own options.
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
    assert found.stdout.count("screening (apgd-ce, apgd-t)") == 1  # only one process prints
