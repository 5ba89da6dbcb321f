"""The command line: what it prints, and that bad input is one line and changes nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.commands import COMMANDS
from robust_plugin.recipes.models.registry import build_model
from robust_plugin.recipes.runtime.folder_lock import FolderInUse
from robust_plugin.recipes.training.loop import Diverged
from robust_plugin.version import __version__

Words = Callable[..., list[str]]
RunTiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a digits-cnn, which is not the tiny network."""
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    save_file(build_model("digits-cnn", classes=4, shape=(3, 8, 8)).state_dict(), path)
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_it_says_what_there_is(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for command in (
        "gradual",
        "magnitude",
        "hydra",
        "harp",
        "compare",
        "evaluate",
        "list",
        "--out",
    ):
        assert command in printed


def test_the_versions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    expected = f"robust-plugin {__version__}, torch {torch.__version__}, Python "
    assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize(
    "command", ["gradual", "magnitude", "hydra", "harp", "compare", "evaluate"]
)
@pytest.mark.parametrize(("option", "least"), [("--help", 12), ("--help-all", 25)])
def test_help_lists_the_settings(
    command: str, option: str, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, option]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: robust-plugin {command}") and "\x1b" not in printed
    base = "--base." if command == "compare" else "--"
    assert f"{base}threat.eps" in printed and f"{base}data.name" in printed
    # The common options come first, and each option has a description.
    common = ["--config", "--out", "--dry-run", "--quiet"]
    pattern = r"^  (--[a-z][\w.-]*)(.*?)(?=^  --|\Z)"
    found = dict(re.findall(pattern, printed, re.MULTILINE | re.DOTALL))
    assert list(found)[:4] == common and len(found) > least
    for name, text in found.items():
        assert len(text.split()) >= 3, name
        assert name in (*common, "--help") or re.search(r"\[[^\]]*\]", text), name
    if command == "evaluate":
        assert all(name in printed for name in ("--attack", "--eps", "--norm"))


@pytest.mark.parametrize(("command", "said"), [("channels", "RUN [RUN ...]"), ("list", "presets")])
def test_commands_without_settings_have_help(
    command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: robust-plugin {command}") and said in printed


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hydro", "--density", "0.1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: unknown command 'hydro' (did you mean hydra?); the ")
    assert len(printed.err.splitlines()) == 1 and printed.out == ""
    assert all(
        command in printed.err for command in ("gradual", "magnitude", "hydra", "harp", "compare")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "extra"], "list takes no words, and got 'extra'."),
        (["channels"], "channels of what? Give the folders of finished runs."),
        (
            ["evaluate"],
            "evaluate what? Give a run folder, or --model and --checkpoint of a network.",
        ),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {message}\n" and printed.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "--config needs a value."),
        (["--out", "--dry-run"], "--out needs a value."),
        (["--dry-run=yes"], "--dry-run takes no value."),
    ],
)
@pytest.mark.parametrize("command", ["harp", "compare"])
def test_a_common_option_without_its_value_is_one_sentence(
    command: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("word", ["--dens=0.1", "--conf=hydra/digits", "--dry"])
def test_an_abbreviated_option_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hydra", word, "--dry-run"]) == 2
    name, error = word.partition("=")[0], capsys.readouterr().err
    assert f"unknown option {name} (did you mean {name}" in error  # it begins the right one


@pytest.mark.parametrize("arguments", ["list", "--help"])
def test_a_reader_that_leaves_ends_a_command_silently(arguments: str) -> None:
    script = Path(sys.executable).parent / "robust-plugin"
    read, write = os.pipe()
    os.close(read)  # as head does, here before the first line, so that the test never depends on it
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [str(script), *arguments.split()],
            stdout=closed,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
    assert done.stderr == "" and done.returncode == 141


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "\nInterrupted. To continue, give the same command again: "),
        (KeyboardInterrupt("It continues."), 130, "\nIt continues.\n"),
        (OSError(28, "No space left on device", "a/b"), 1, "error: [Errno 28] No space left on"),
        (ImportError("AutoAttack needs: pip"), 1, "error: AutoAttack needs: pip\n"),
        (Diverged("the loss is nan."), 1, "error: the loss is nan.\n"),
        (FolderInUse("a is in use."), 1, "error: a is in use.\n"),
        (ValueError("x is 3; legal: 2."), 2, "error: x is 3; legal: 2.\n"),
        (TypeError("x is no number."), 2, "error: x is no number.\n"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore"), 1, "smaller batch sizes"),
    ],
)
def test_what_stops_a_command_is_one_sentence_and_a_status(
    raised: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(command: str, words: list[str]) -> None:
        raise raised

    monkeypatch.setitem(COMMANDS, "harp", stopped)
    assert main(["harp", "--out", "my runs"]) == status
    printed = capsys.readouterr()
    assert said in printed.err and len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""
    if said.startswith("\nInterrupted"):
        assert printed.err.endswith("robust-plugin harp --out 'my runs'\n")


def test_a_plan_that_is_interrupted_has_nothing_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(command: str, words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "harp", stopped)
    assert main(["harp", "--dry-run"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


@pytest.mark.usefixtures("at_workplace")
def test_without_a_config_a_recipe_says_whose_settings_stand(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words("hydra", tmp_path / "out"), "--dry-run"]
    bare = [word for word in given if not word.startswith("--config")]
    assert main(given) == 0
    assert "no --config" not in capsys.readouterr().err
    assert main(bare) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "--config" in line]
    assert len(said) == 1 and "not given are those of hydra/images; robust" in said[0]
    assert main(["hydra", "--data.folder=images", f"--out={tmp_path / 'out'}"]) == 2
    assert "data.folder is images, but data.name is 'digits'" in capsys.readouterr().err


def test_a_users_own_network_from_the_current_folder_by_the_real_command(
    workplace: Path, tmp_path: Path, words: Words
) -> None:
    # A fresh place: nothing of ours is on the path but what is installed.
    shutil.copytree(workplace / "images", tmp_path / "images")
    text = (workplace / "tiny_networks.py").read_text()
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "networks.py").write_text(text)
    script = Path(sys.executable).parent / "robust-plugin"
    command = words("harp", Path("runs/mine"), "--model=my_package.networks:net")
    done = subprocess.run(
        [str(script), *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "kept 30 % of the prunable weights; all of it in runs/mine" in done.stdout
    assert "threat model: Linf eps=4/255" in done.stdout
    assert re.search(r"^clean +\d+\.\d \[\d+\.\d, \d+\.\d\]  n=32", done.stdout, re.MULTILINE)
    out = tmp_path / "runs" / "mine"
    state = load_file(out / "model.safetensors")
    assert {"0.weight", "3.weight", "6.weight"} <= set(state)
    kept = json.loads((out / "report.json").read_text())["kept"]
    for name, (count, size) in kept.items():
        assert int(state[name].count_nonzero()) == count <= size == state[name].numel()
    assert (out / "kept.png").stat().st_size > 0


def test_a_run_prints_the_report_it_writes(
    tmp_path: Path, run_tiny: RunTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    left = run_tiny("magnitude", tmp_path / "out", "--rates=erk")
    printed = capsys.readouterr().out
    report = left["report"]["report"]
    low_to_high = r"\[\d+\.\d, \d+\.\d\]"
    assert re.search(rf"clean +{report['clean_acc']:.1f} {low_to_high}  n=32", printed)
    assert re.search(rf"PGD-3x2 +{report['worst_case_acc']:.1f} {low_to_high}  n=32", printed)
    assert left["report"]["data"] == "images" and report["threat"] == "Linf eps=4/255"


# --- bad input

BAD = [
    ("--config=hydra/mnist", "file hydra/mnist .did you mean hydra/images or hydra/dig.*; robust"),
    ("--threat.eps=8/0", r"eps is '8/0'; give a number >= 0 or a fraction such as \"8/255\""),
    ("--threat.eps=-1", "eps is '-1'"),
    ("--density=2", r"density is 2.0; legal: 0 < density <= 1"),
    ("--density=0", r"density is 0.0; legal: 0 < density <= 1"),
    ("--density=nan", r"density is 'nan'; legal: a finite number"),
    ("--data.name=mnist", "unknown data set 'mnist' .*legal are digits, "),
    ("--data.folder=absent", r"no folder absent; expected.*: train/<class>/"),
    ("--data.folder=None", r"give --data.folder; expected.*: train/<class>/"),
    ("--data.name=digits", r"data.folder is images, but data.name is 'digits', .* --data.name too"),
    ("--data.validation=1.5", r"validation=1.5; legal is a share"),
    ("--data.augmentation=rotate", "augmentation='rotate' of 'folder'; legal: none, crop"),
    ("--data.batch-size=0", "data.batch_size is 0; legal: at least 1"),
    ("--evaluation.batch-size=0", "evaluation.batch_size is 0; legal: at least 1"),
    ("--evaluation.steps=0", "steps is 0; legal: at least 1"),
    ("--evaluation.restarts=0", "restarts is 0; legal: at least 1"),
    ("--evaluation.autoattack=-1", "evaluation.autoattack is -1; legal: 0 or more"),
    ("--objective.steps=0", "steps is 0"),
    ("--objective.step-size=1/0", "step_size is '1/0'"),
    ("--pretrain.epochs=0", "pretrain.epochs is 0; legal: at least 1"),
    ("--prune.epochs=-1", "prune.epochs is -1; legal: at least 1"),
    ("--finetune.epochs=-1", r"finetune.epochs is -1; legal: 0 \(weights as they were\) or more"),
    ("--checkpoint=absent.safetensors", "no checkpoint at absent.safetensors"),
    ("--device=gpu", "device is 'gpu'"),
    ("--device=cuda:77", "device is 'cuda:77'"),
    ("--threads=0", "threads is 0; legal: at least 1"),
    ("--model=resnet1", "unknown model 'resnet1'; legal are digits-cnn"),
    ("--model=absent:net", "cannot import 'absent'"),
    ("--model=tiny_networks:absent", "has no 'absent'"),
    ("--out", "--out needs a value"),
    ("--finetune.lr=inf", "options: finetune.lr is 'inf'; legal: a finite number"),
    ("--prune.momentum=-0.1", "prune.momentum is -0.1; legal: 0 or more, below 1"),
    ("--prune.momentum=1", "prune.momentum is 1.0; legal: 0 or more, below 1"),
    ("--finetune.weight-decay=-1", "finetune.weight_decay is -1.0; legal: 0 or more"),
    ("--pretrain.ramp=1.5", "pretrain.ramp is 1.5; legal: 0 to 1"),
    ("--data.workers=-1", "data.workers is -1; legal: 0 or more"),
    ("--objective.replays=0", "objective.replays is 0; legal: at least 1"),
    ("--objective.step-size=0", "objective.step_size is 0, by which no attack moves; legal: above"),
    ("--device=meta", "device is 'meta', whose tensors hold no values; legal here: auto, cpu"),
]


@pytest.mark.parametrize(("option", "message"), BAD, ids=[option for option, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(
    option: str,
    message: str,
    tmp_path: Path,
    at_workplace: Path,
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tree(at_workplace)
    assert main(words("hydra", tmp_path / "out", option)) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err), printed.err
    assert printed.err.startswith("error: ") and len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert not list(tmp_path.iterdir())
    after = {name: text for name, text in tree(at_workplace).items() if "__pycache__" not in name}
    assert after == {name: text for name, text in before.items() if "__pycache__" not in name}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gamma-step=0.1"], r"gamma_step is 0.1, but control is 'held', which has no hinge"),
        (["--control=hinge", "--gamma-step=-1"], r"gamma_step is -1.0; legal: above 0"),
        (["--control=hinge", "--learn=scores"], r"control is 'hinge', but learn is 'scores'"),
        (["--control=hinge", "--gamma-step=nan"], r"gamma_step is 'nan'; legal: a finite number"),
    ],
)
def test_settings_of_a_hinge_that_is_not_used_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    at_workplace: Path,
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words("harp", tmp_path / "out", *options)) == 2
    assert re.search(message, capsys.readouterr().err) and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("magnitude", "--rounds=0", r"rounds is 0; legal: 1 to 3"),
        ("magnitude", "--rounds=4", r"rounds is 4; legal: 1 to 3"),
        ("magnitude", "--finetune.epochs=0", r"finetune.epochs is 0; legal: at least 1"),
    ],
)
def test_rounds_that_epochs_do_not_reach_for(
    command: str,
    option: str,
    message: str,
    tmp_path: Path,
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words(command, tmp_path / "out", option)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("densty: 0.1", "unknown setting densty (did you mean density?); legal: model"),
        ("prune: {rate: 0.1}", "unknown setting prune.rate; legal: epochs, lr"),
        ("density: much", "density is 'much'; legal: a finite number"),
        ("rates: ekr", "rates is 'ekr' (did you mean erk?); legal: uniform, erk, lamp, global"),
        ("threat: {eps: 8/0}", "eps is '8/0'"),
        ("threat: {norm: L3}", "norm is 'L3'; legal: Linf, L2"),
        ("- 1", "is no mapping"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_bad_file_of_settings_is_one_line_and_writes_nothing(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    out = tmp_path / "out"
    assert main(["hydra", f"--config={tmp_path / 'mine.yaml'}", f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--densty=0.1", "--densty"),
        ("--density=much", "much"),
        ("--rates=ekr", "ekr"),
        ("--seed=1.5", "1.5"),
    ],
)
def test_a_wrong_option_is_named_with_status_2(
    option: str, named: str, tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("hydra", tmp_path / "out", option)) == 2
    error = capsys.readouterr().err
    assert named in error and len(error.splitlines()) == 1
    if named == "ekr":
        assert all(legal in error for legal in ("uniform", "erk", "lamp", "global"))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize("kind", ["other model", "truncated", "text", "pt of other model"])
def test_a_checkpoint_that_does_not_fit_is_named(
    kind: str,
    dense: Path,
    tmp_path: Path,
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "given.safetensors"
    message = "truncated or no safetensors file"
    if kind == "other model":
        path.write_bytes(dense.read_bytes())
        message = "the state does not fit the model; these differ: 0.bias, 0.weight"
    elif kind == "truncated":
        path.write_bytes(dense.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("these are no weights, " * 9)
    else:
        path = tmp_path / "given.pt"
        torch.save(load_file(dense), path)
        message = "the state does not fit the model; these differ: 0.bias, 0.weight"
    assert main(words("hydra", tmp_path / "out", f"--checkpoint={path}")) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("at_workplace")
def test_an_out_that_is_a_file_is_named(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    assert main(words("hydra", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "out") in error and len(error.splitlines()) == 1
    assert (tmp_path / "out").read_text() == "mine"


@pytest.fixture
def no_autoattack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    yield


@pytest.mark.usefixtures("no_autoattack", "at_workplace")
def test_a_missing_library_is_said_before_the_training(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("hydra", tmp_path / "out", "--evaluation.autoattack=8")) == 1
    assert capsys.readouterr().err == "error: AutoAttack needs: pip install pyautoattack\n"
    assert not list(tmp_path.iterdir())
    assert main(words("hydra", tmp_path / "out")) == 0  # and nobody else needs it


@pytest.mark.usefixtures("at_workplace")
def test_fewer_classes_than_autoattack_needs_is_said_before_the_training(
    workplace: Path, tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    for part in ("train", "test"):
        for label in range(3):
            name = f"{part}/class{label}"
            shutil.copytree(workplace / "images" / name, images / name)
    words_ = words(
        "hydra", tmp_path / "out", f"--data.folder={images}", "--evaluation.autoattack=8"
    )
    assert main(words_) == 2
    error = capsys.readouterr().err
    assert "3 classes; AutoAttack's DLR loss needs 4" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
