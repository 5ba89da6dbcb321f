"""The folder of a run: continued after every interruption, and refused with other settings."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from safetensors.torch import load_file
from small_recipe import CERTIFIED, interrupt_after
from torch import Tensor, nn

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.evaluate import end_of_run
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.models.registry import build_model
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.papers.registry import finished_run
from robust_plugin.recipes.training import loop as training_module
from robust_plugin.recipes.training.loop import train
from robust_plugin.recipes.training.run import dense_weights

Results = dict[str, Any]

RunTiny = Callable[..., Results]

Words = Callable[..., list[str]]

FOUR = [f"--{stage}.epochs=4" for stage in ("pretrain", "prune", "finetune")]

VARIANTS = {
    "magnitude": ("magnitude", "--rates=erk"),
    "magnitude iterative": ("magnitude", "--rounds=2"),
    "hydra": ("hydra", "--prune.lr=0.5"),
    "hydra random scores": ("hydra", "--scores=kaiming_normal"),
    "hydra 2:4": ("hydra", "--pattern=2:4"),
    "harp held": ("harp", "--prune.lr=0.5"),
    "harp hinge": ("harp", "--control=hinge", "--prune.lr=0.5"),
    "harp rates": ("harp", "--learn=rates", "--prune.lr=0.5", "--prune.optimizer=adam"),
    "gradual": ("gradual", "--prune.lr=0.5", "--finetune.epochs=4"),
    "gradual both": ("gradual", "--learn=both", "--control=hinge", "--prune.lr=0.5", *FOUR[2:]),
    "gradual magnitude": ("magnitude", "--schedule=geometric"),
    "gradual, regularized": (
        *("gradual", "--regularizers.distill=0.3", "--regularizers.average=0.5", *FOUR[2:]),
        *("--regularizers.weight-perturbation=0.01", "--regularizers.score-perturbation=0.1"),
    ),
    "free": ("harp", "--objective.name=free", "--objective.replays=2", *FOUR),
    "certified": ("harp", *CERTIFIED, "--objective.bounds=crown-ibp", "--evaluation.verify=4"),
    "mixtrain": ("hydra", "--objective.name=mixtrain", "--pretrain.ramp=1.0"),
    "smoothed": (
        *("hydra", "--objective.name=smoothadv", "--threat.norm=L2", "--prune.ramp=1.0"),
        *("--evaluation.smooth=3", "--evaluation.votes=50"),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_in_every_epoch_and_between_all(
    variant: str,
    tmp_path: Path,
    run_tiny: RunTiny,
    results: Callable[[Path], Results],
    words: Words,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command, *more = VARIANTS[variant]
    whole = run_tiny(command, tmp_path / "whole", *more)
    # The loss is computed twice on each batch by free training and by perturbed weights.
    per_epoch = 6 if variant in ("free", "gradual, regularized") else 3
    for name, batches in (("at the boundary", per_epoch), ("in the middle", per_epoch + 1)):
        out = tmp_path / name
        stopped = 0
        while True:
            with monkeypatch.context() as patch:
                interrupt_after(patch, batches)
                status = main(words(command, out, *more))
            if status == 0:
                break
            assert status == 130
            stopped += 1
        assert stopped >= 4  # once per epoch except the last
        assert results(out) == whole


def test_killed_after_any_write(
    tmp_path: Path,
    run_tiny: RunTiny,
    results: Callable[[Path], Results],
    words: Words,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # kill -9 leaves only the files behind. Files change only by a rename, so the states before each
    # rename are all that a kill can leave. A half-written file has a temporary name.
    out = tmp_path / "whole"
    moments: list[Path] = []
    rename = os.replace

    def seen(source: Any, target: Any) -> None:
        moments.append(tmp_path / f"{len(moments)}-{Path(target).name}")
        shutil.copytree(out, moments[-1])
        partial = moments[-1] / Path(source).name  # as if only half of it had been written
        partial.write_bytes(partial.read_bytes()[: partial.stat().st_size // 2])
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", seen)
        whole = run_tiny("harp", out, "--prune.lr=0.5", "--prune.epochs=1")
    written = {moment.name.partition("-")[2] for moment in moments}
    assert written | {"kept.png"} == {path.name for path in out.iterdir()}
    for moment in moments:
        for path in moment.glob("*.safetensors"):
            load_file(path)
        for line in (moment / "log.jsonl").open() if (moment / "log.jsonl").exists() else ():
            json.loads(line)
    for moment in moments:
        assert main(words("harp", moment, "--prune.lr=0.5", "--prune.epochs=1")) == 0
        assert results(moment) == whole, moment.name


SLOW_END = ("--evaluation.restarts=50", "--evaluation.steps=20")

SLOW = ("--pretrain.epochs=12", "--prune.epochs=8", "--finetune.epochs=8", "--threat.eps=1/255")


def progress(out: Path) -> str:
    """Return the stage of the last epoch in the log, or start, evaluation or report."""
    log = out / "log.jsonl"
    if (out / "report.json").exists():
        return "report"
    lines = log.read_text().splitlines() if log.exists() else []
    if not lines:
        return "start"
    last = json.loads(lines[-1])
    done = last["stage"] == "finetune" and last["epoch"] == 7
    return "evaluation" if done else str(last["stage"])


@pytest.mark.slow
def test_the_real_command_is_stopped_and_killed_and_goes_on(
    tmp_path: Path,
    workplace: Path,
    run_tiny: RunTiny,
    results: Callable[[Path], Results],
    words: Words,
) -> None:
    whole = run_tiny("harp", tmp_path / "whole", *SLOW, *SLOW_END)
    out = tmp_path / "killed"
    script = Path(sys.executable).parent / "robust-plugin"
    line = words("harp", out, *SLOW, *SLOW_END)
    real = subprocess.Popen(
        [str(script), *line],
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    plan = [
        ("pretrain", signal.SIGINT, 0.00),
        ("prune", signal.SIGKILL, 0.03),
        ("finetune", signal.SIGKILL, 0.01),
        ("evaluation", signal.SIGINT, 0.05),
        ("evaluation", signal.SIGKILL, 0.02),
    ]
    for stage, how, delay in plan:
        # The others are the same command without the seconds of its imports.
        process = real if stage == "pretrain" else Forked(main, line, cwd=workplace)
        while progress(out) != stage or not started(out, process.pid):
            assert process.poll() is None, f"over before {stage}: {process.communicate()}"
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(how)
        printed, errors = process.communicate(timeout=60)
        assert progress(out) != "report"
        if how == signal.SIGINT:
            assert process.returncode == 130, errors
            assert "Traceback" not in errors and printed == ""
            assert errors.strip().splitlines()[-1].startswith("Interrupted."), errors
        else:
            assert process.returncode == -signal.SIGKILL
        for path in out.glob("*.safetensors"):
            load_file(path)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert len({(line["stage"], line["epoch"]) for line in lines}) == len(lines)
    process = Forked(main, line, cwd=workplace)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "all of it in" in printed
    assert results(out) == whole


GRADUAL = {
    "gradual": ("gradual", {"pretrain": 4, "shrink": 4, "prune": 4, "finetune": 8}),
    "gradual magnitude": ("magnitude", {"pretrain": 4, "finetune": 16}),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", GRADUAL)
def test_killed_in_the_middle_of_each_stage(
    variant: str,
    tmp_path: Path,
    workplace: Path,
    run_tiny: RunTiny,
    results: Callable[[Path], Results],
    words: Words,
) -> None:
    command, stages = GRADUAL[variant]
    more = ["--pretrain.epochs=4", "--prune.epochs=4", "--finetune.epochs=12"]
    more += ["--objective.steps=3", "--schedule=geometric"]
    whole = run_tiny(command, tmp_path / "whole", *more)
    trained = [line["stage"] for line in whole["log"]]
    assert {stage: trained.count(stage) for stage in stages} == stages
    out = tmp_path / "killed"
    line = words(command, out, *more)
    killed = []
    for stage, epochs in stages.items():
        process = Forked(main, line, cwd=workplace)
        while (now := last_epoch(out)) is None or now["stage"] != stage:
            assert process.poll() is None, f"over before {stage}: {process.communicate()}"
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        now = last_epoch(out)
        assert now is not None and (now["stage"], now["epoch"] < epochs - 1) == (stage, True)
        killed.append(stage)
    assert killed == list(stages)
    process = Forked(main, line, cwd=workplace)
    assert process.wait() == 0, process.communicate()
    assert results(out) == whole


def last_epoch(out: Path) -> dict[str, Any] | None:
    """Return the last line of a run's log; None without one."""
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1]) if lines else None


def started(out: Path, pid: int) -> bool:
    """Return whether the process has locked its folder, so that its own work has begun."""
    lock = out / ".in-use"
    return lock.exists() and f'"pid": {pid},' in lock.read_text()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, workplace: Path, words: Words
) -> Iterator[dict[str, Path]]:
    """A finished run of each recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr(sys, "path", list(sys.path))
        folders = {}
        for recipe in ("magnitude", "hydra", "harp"):
            folders[recipe] = tmp_path_factory.mktemp("finished") / recipe
            assert main(words(recipe, folders[recipe])) == 0
        yield folders


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("hydra", "--density=0.1", "density was 0.3 and is now 0.1"),
        ("hydra", "--seed=1", "seed was 0 and is now 1"),
        ("hydra", "--threat.eps=8/255", "threat.eps was '4/255' and is now '8/255'"),
        ("hydra", "--objective.steps=3", "objective.steps was 2 and is now 3"),
        ("hydra", "--data.batch-size=24", "data.batch_size was 16 and is now 24"),
        ("hydra", "--pretrain.lr=0.2", "pretrain.lr was 0.1 and is now 0.2"),
        ("hydra", "--prune.lr=0.2", "prune.lr was 1.0 and is now 0.2"),
        ("hydra", "--finetune.epochs=3", "finetune.epochs was 2 and is now 3"),
        ("hydra", "--scores=xavier_normal", "scores was 'scaled_magnitude' and is now 'xavier_"),
        ("hydra", "--pattern=2:4", "pattern was 'none' and is now '2:4'"),
        ("hydra", "--rates=erk", "rates was 'uniform' and is now 'erk'"),
        ("hydra", "--budget=flops", "budget was 'params' and is now 'flops'"),
        ("hydra", "--exclude=0", r"exclude was \[\] and is now \['0'\]"),
        ("harp", "--control=hinge", "control was 'held' and is now 'hinge'"),
        ("harp", "--learn=rates", "learn was 'both' and is now 'rates'"),
        ("magnitude", "--rounds=2", "rounds was 1 and is now 2"),
    ],
)
def test_another_setting_is_refused_by_name_and_changes_nothing(
    command: str,
    option: str,
    message: str,
    finished: dict[str, Path],
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = finished[command]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(words(command, out, option)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out} holds a run with other settings: ")
    assert re.search(message, error), error
    assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.usefixtures("at_workplace")
def test_another_recipe_in_the_folder_is_refused(
    finished: dict[str, Path], words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("harp", finished["hydra"])) == 2
    assert "holds a run with other settings" in capsys.readouterr().err


def test_evaluation_may_change_and_is_then_done_again(tmp_path: Path, run_tiny: RunTiny) -> None:
    first = run_tiny("hydra", tmp_path / "out")
    again = run_tiny("hydra", tmp_path / "out", "--evaluation.steps=4")
    assert list(first["report"]["report"]["flags"]) == ["clean", "PGD-3x2"]
    assert list(again["report"]["report"]["flags"]) == ["clean", "PGD-4x2"]
    differ = {key for key in first if first[key] != again[key]}
    assert differ == {"report", "config", "examples.safetensors"}
    assert run_tiny("hydra", tmp_path / "out") == first  # with the first settings again


def test_a_finished_run_is_not_evaluated_twice(
    tmp_path: Path, run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_tiny("hydra", tmp_path / "out")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated or trained again")

    monkeypatch.setattr(end_of_run, "measure", never)
    interrupt_after(monkeypatch, 0)
    assert run_tiny("hydra", tmp_path / "out") == first


def test_a_checkpoint_that_changed_is_another_setting(
    tmp_path: Path, run_tiny: RunTiny, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tiny("hydra", tmp_path / "a", "--pretrain.epochs=1")
    run_tiny("hydra", tmp_path / "b", "--pretrain.epochs=1", "--seed=1")
    dense = tmp_path / "dense.safetensors"
    shutil.copy(tmp_path / "a" / "pretrain.best.safetensors", dense)
    run_tiny("hydra", tmp_path / "out", f"--checkpoint={dense}")
    shutil.copy(tmp_path / "b" / "pretrain.best.safetensors", dense)
    assert main(words("hydra", tmp_path / "out", f"--checkpoint={dense}")) == 2
    assert "other settings: checkpoint was '" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 5, 0.5, 0.999])
def test_a_truncated_checkpoint_in_the_folder_is_named(
    length: float,
    tmp_path: Path,
    finished: dict[str, Path],
    at_workplace: Path,
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished["hydra"], out)
    path = out / "prune.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if isinstance(length, float) else length])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert main(words("hydra", out)) == 2
    error = capsys.readouterr().err
    assert f"{path} is truncated or no safetensors file" in error and len(error.splitlines()) == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def falling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validation say that every epoch is worse than the one before."""
    seen: list[float] = []

    def validated(run: Any, model: nn.Module) -> dict[str, float]:
        seen.append(0.0)
        return {"clean": 0.5, "robust": 1 / len(seen)}

    monkeypatch.setattr(training_module, "validated", validated)


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("structure", ["weights", "channels"])
def test_the_parent_of_a_run_is_the_network_that_its_prune_phase_began_with(
    select: str,
    structure: str,
    tmp_path: Path,
    run_tiny: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: dict[str, Tensor] = {}

    def seen(run: Any, name: str, model: nn.Module, *rest: Any, **more: Any) -> nn.Module:
        if name == "prune":
            begun.update({k: t.clone() for k, t in model.state_dict().items()})
        return train(run, name, model, *rest, **more)

    monkeypatch.setattr("robust_plugin.recipes.papers.hydra.train", seen)
    falling(monkeypatch)
    out = tmp_path / "out"
    run_tiny("hydra", out, f"--pretrain.select={select}", f"--structure={structure}")
    # What it began with, under the names of the dense network.
    expected = dict(begun)
    of_epochs = [load_file(out / f"pretrain{which}.safetensors") for which in (".best", "")]
    assert not torch.equal(of_epochs[0]["model/0.weight"], of_epochs[1]["model/0.weight"])
    parent = of_run(out).parent
    assert parent is not None and parent == dense_weights(out, finished_run(out).config)
    model = build_model("tiny_networks:net", classes=4, shape=(3, 8, 8))
    load_weights(model, parent)
    assert all(torch.equal(tensor, expected[k]) for k, tensor in model.state_dict().items())


def test_the_parent_of_a_run_that_was_given_one_is_that(tmp_path: Path) -> None:
    config = RecipeConfig(checkpoint=tmp_path / "dense.pt")
    assert dense_weights(tmp_path / "run", config) == tmp_path / "dense.pt"
