"""The one loop: schedule, selection, and an interruption at every point that leaves a trace."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from robust_plugin import IBP, evaluate, pgd
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.objectives.by_bounds import Certified
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.data.datasets import Data
from robust_plugin.recipes.evaluate import finish
from robust_plugin.recipes.papers.registry import RECIPES, execute, train_recipe
from robust_plugin.recipes.training import run as run_module
from robust_plugin.recipes.training import step
from robust_plugin.recipes.training.loop import cosine, pretrained, train
from robust_plugin.recipes.training.objective import build_objective
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.journal import Journal
from robust_plugin.runtime.random import seed_of

Results = dict[str, Any]
RunTiny = Callable[..., Results]
Words = Callable[..., list[str]]

SMALL: dict[str, Any] = {
    "model": "tiny_networks:net",
    "data": {"batch_size": 16},
    "threat": {"eps": "4/255"},
    "objective": {"steps": 2},
    "pretrain": {"epochs": 3, "lr": 0.1},
    "prune": {"epochs": 2, "lr": 0.2},
    "finetune": {"epochs": 4, "lr": 0.05},
    "evaluation": {"steps": 2, "restarts": 1, "autoattack": 0},
    "device": "cpu",
    "threads": 1,
}


def small(recipe: str, **settings: Any) -> Any:
    return build(RECIPES[recipe][0], {**SMALL, **settings}, where="test")


@pytest.fixture
def on_planted(
    at_workplace: Path, planted: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Data], None]:
    """Runs see this data set, and nothing else."""

    def use(data: Data) -> None:
        monkeypatch.setattr(run_module, "data_of", lambda of: data)

    use(planted())
    return use


@contextmanager
def recorded_steps() -> Iterator[list[list[float]]]:
    """The learning rates of every optimizer step, a list a step."""
    seen: list[list[float]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    try:
        yield seen
    finally:
        handle.remove()


# --- the schedule


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_rate_falls_by_a_cosine_from_lr_to_above_zero(tmp_path: Path, optimizer: str) -> None:
    run = Run(tmp_path, small("hydra"))
    stage = StageConfig(epochs=4, lr=0.05, optimizer=optimizer)  # type: ignore[arg-type]
    with recorded_steps() as seen:
        train(run, "pretrain", run.fresh_model(), stage)
    rates = [rate for step in seen for rate in step]
    assert len(rates) == 4 * 3  # 48 points in batches of 16
    assert rates[0] == 0.05 and rates[-1] > 0
    expected = [0.05 * math.cos(math.pi * t / 24) ** 2 for t in range(12)]  # the half-angle form
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_cosine_is_never_zero_nor_rising() -> None:
    for steps in (1, 2, 7, 1000):
        rates = [cosine(0.1, step, steps) for step in range(steps)]
        assert rates[0] == 0.1 and rates[-1] > 0
        assert rates == sorted(rates, reverse=True)


@pytest.mark.usefixtures("on_planted")
def test_all_methods_train_equally_long(tmp_path: Path) -> None:
    steps = {}
    for name, recipe, more in (
        ("one-shot", "magnitude", {}),
        ("2 rounds", "magnitude", {"rounds": 2}),
        ("3 rounds", "magnitude", {"rounds": 3}),
        ("hydra", "hydra", {}),
        ("harp", "harp", {}),
    ):
        config = small(recipe, **more)
        with recorded_steps() as seen:
            train_recipe(recipe, Run(tmp_path / name, config))
        steps[name] = len(seen)
    assert set(steps.values()) == {(3 + 2 + 4) * 3}, steps


@pytest.mark.usefixtures("on_planted")
def test_free_training_shows_a_batch_several_times_in_fewer_epochs(tmp_path: Path) -> None:
    run = Run(tmp_path, small("hydra", objective={"name": "free", "replays": 2}))
    with recorded_steps() as seen:
        train(run, "pretrain", run.fresh_model(), StageConfig(epochs=4, lr=0.05))
    assert len(seen) == 4 * 3
    assert len(json.loads(json.dumps((tmp_path / "log.jsonl").read_text().splitlines()))) == 2


@pytest.mark.usefixtures("on_planted")
def test_a_certified_loss_moves_with_every_step_by_the_stages_own_ramp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float, float]] = []
    loss = Certified.__call__

    def recorded(self: Certified, *batch: Any) -> Tensor:
        seen.append((self.risen, self.threat.eps, self.kappa[1]))
        return loss(self, *batch)

    monkeypatch.setattr(Certified, "__call__", recorded)
    objective = {"name": "certified", "kappa": [1.0, 0.25], "eps_factor": 1.5}
    stages = {"pretrain": {"epochs": 4, "ramp": 0.5}, "prune": {"epochs": 1, "ramp": 0.0}}
    config = small("hydra", objective=objective, **stages, finetune={"epochs": 1, "lr": 0.01})
    train_recipe("hydra", Run(tmp_path, config))
    pretrain = [min(1.0, step / 6) for step in range(12)]  # half of 4 epochs of 3 steps
    assert [risen for risen, *_ in seen] == pytest.approx([*pretrain, *[1.0] * 6])
    assert {(round(eps, 9), kappa) for _, eps, kappa in seen} == {(round(1.5 * 4 / 255, 9), 0.25)}


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize(("name", "eps"), [("certified", "0.1"), ("mixtrain", "0.1")])
def test_training_by_bounds_is_validated_by_what_is_proved(
    tmp_path: Path, name: str, eps: str
) -> None:
    config = small("hydra", objective={"name": name, "kappa": [1.0, 0.9]}, threat={"eps": eps})
    run = Run(tmp_path, config)
    model = train(run, "pretrain", run.fresh_model(), StageConfig(epochs=6, lr=0.05))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    last = max(records, key=lambda record: (record["robust"], record["epoch"]))
    x, y = (torch.stack(each) for each in zip(*run.data.validation, strict=True))
    prover = IBP(run.threat) if name == "certified" else LiRPA(run.threat, "same-slope")
    model.eval()
    right = model(x).argmax(1) == y
    assert last["robust"] == int((right & prover(model, x, y)).sum()) / len(y)
    assert last["clean"] == int(right.sum()) / len(y)
    attacked = evaluate(model, [(x, y)], attacks=[pgd(run.threat, steps=20)])
    assert 0 < last["robust"] < attacked.accuracy("PGD-20")  # or PGD would have told the same


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize("decay", [False, True])
def test_scores_and_rates_decay_only_when_asked(tmp_path: Path, decay: bool) -> None:
    seen: list[list[float]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append([g["weight_decay"] for g in optimizer.param_groups])
    )
    try:
        config = small("harp", prune={"epochs": 1, "weight_decay": 0.01, "decay_scores": decay})
        train_recipe("harp", Run(tmp_path, config))
    finally:
        handle.remove()
    prune = [groups for groups in seen if len(groups) == 3]  # norms, scores, rates
    assert len(prune) == 3
    assert {tuple(groups) for groups in prune} == {(0.01, *[0.01 if decay else 0.0] * 2)}


@pytest.mark.usefixtures("on_planted")
def test_a_loss_that_is_not_finite_names_the_stage_and_its_rate(tmp_path: Path) -> None:
    objective = {"name": "benign"}
    config = small("magnitude", objective=objective, pretrain={"epochs": 3, "lr": 1e20})
    with pytest.raises(ValueError, match=r"the loss of pretrain is (nan|inf) at epoch .*1e\+20"):
        train_recipe("magnitude", Run(tmp_path, config))


# --- what is looked at


class Untouchable(Dataset[Any]):
    """Test points that nobody may look at yet."""

    opened = False

    def __init__(self, points: Dataset[Any]) -> None:
        self.points = points

    def __len__(self) -> int:
        if not self.opened:
            raise AssertionError("the test points were counted")
        return len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if not self.opened:
            raise AssertionError("a test point was looked at")
        return self.points[index]


@pytest.mark.parametrize("recipe", ["magnitude", "hydra", "harp"])
def test_training_never_looks_at_the_test_points(
    recipe: str,
    tmp_path: Path,
    on_planted: Callable[[Data], None],
    planted: Callable[..., Data],
) -> None:
    data = planted()
    guard = Untouchable(data.test)
    on_planted(replace(data, test=guard))
    train_recipe(recipe, Run(tmp_path, small(recipe)))
    with pytest.raises(AssertionError, match="the test points were counted"):
        execute(recipe, small(recipe), tmp_path)  # the trap works
    guard.opened = True
    assert execute(recipe, small(recipe), tmp_path).n == 40


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_validation_points_choose_the_epoch(
    select: str,
    tmp_path: Path,
    on_planted: Callable[[Data], None],
    planted: Callable[..., Data],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Labels that are wrong on validation: the more is learned, the worse it looks there, while
    # training and test points say the opposite.
    on_planted(planted(shift=1))
    after: list[dict[str, Tensor]] = []
    save = Run.save_epoch

    def remembered(run: Run, name: str, **states: Any) -> None:
        after.append({k: t.clone() for k, t in states["model"].state_dict().items()})
        save(run, name, **states)

    monkeypatch.setattr(Run, "save_epoch", remembered)
    run = Run(tmp_path, small("magnitude"))
    stage = StageConfig(epochs=6, lr=0.05, select=select)  # type: ignore[arg-type]
    model = train(run, "pretrain", run.fresh_model(), stage)
    robust = [json.loads(line)["robust"] for line in (tmp_path / "log.jsonl").open()]
    best = max(range(6), key=lambda epoch: (robust[epoch], epoch))
    assert best < 5 and robust[best] > robust[5]  # or this shows nothing
    chosen = after[best if select == "best" else 5]
    assert all(torch.equal(chosen[k], t) for k, t in model.state_dict().items())
    assert any(not torch.equal(after[best][k], after[5][k]) for k in chosen)


@pytest.mark.usefixtures("on_planted")
def test_the_seed_decides_everything_and_the_global_generator_nothing(tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(int.from_bytes(folder.encode()[:4], "big"))
        model = pretrained(Run(tmp_path / folder, small("hydra", seed=seed)))
        return {k: t.clone() for k, t in model.state_dict().items()}

    first, again, other = weights("first", 0), weights("again", 0), weights("other", 1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_near_seeds_are_unrelated_and_in_range() -> None:
    seeds = {seed_of(seed, name, epoch) for seed in range(9) for name in "ab" for epoch in range(9)}
    assert len(seeds) == 9 * 2 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 11) != seed_of(11, 1)


@pytest.mark.usefixtures("on_planted")
def test_a_given_checkpoint_takes_the_place_of_pretraining(tmp_path: Path) -> None:
    dense = pretrained(Run(tmp_path / "dense", small("hydra")))
    run = Run(
        tmp_path / "run",
        replace(small("hydra"), checkpoint=tmp_path / "dense" / "pretrain.best.safetensors"),
    )
    loaded = pretrained(run)
    assert not (tmp_path / "run" / "pretrain.safetensors").exists()
    state = loaded.state_dict()
    assert all(torch.equal(t, state[k]) for k, t in dense.state_dict().items())


# --- interruption: the same command goes on, to the bit

FOUR = [f"--{stage}.epochs=4" for stage in ("pretrain", "prune", "finetune")]
CERTIFIED = ("--objective.name=certified", "--objective.kappa", "1.0", "0.5", "--prune.ramp=0.5")
VARIANTS = {
    "magnitude": ("magnitude", "--rates=erk"),
    "magnitude iterative": ("magnitude", "--rounds=2"),
    "hydra": ("hydra", "--prune.lr=0.5"),
    "hydra random scores": ("hydra", "--scores=kaiming_normal"),
    "hydra 2:4": ("hydra", "--pattern=2:4"),
    "harp held": ("harp", "--prune.lr=0.5"),
    "harp hinge": ("harp", "--control=hinge", "--prune.lr=0.5"),
    "harp rates": ("harp", "--learn=rates", "--prune.lr=0.5", "--prune.optimizer=adam"),
    "free": ("harp", "--objective.name=free", "--objective.replays=2", *FOUR),
    "certified": ("harp", *CERTIFIED, "--objective.bounds=crown-ibp", "--evaluation.verify=4"),
    "mixtrain": ("hydra", "--objective.name=mixtrain", "--pretrain.ramp=1.0"),
    "smoothed": (
        *("hydra", "--objective.name=smoothadv", "--threat.norm=L2", "--prune.ramp=1.0"),
        *("--evaluation.smooth=3", "--evaluation.votes=50"),
    ),
}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """The next run gets Ctrl-C when it asks for the loss of its (batches + 1)st batch."""
    left = [batches]

    def interrupted(config: ObjectiveConfig, threat: Any, **schedule: Any) -> Any:
        objective = build_objective(config, threat, **schedule)

        def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return objective(model, x, y)

        if hasattr(objective, "progress"):
            loss.progress = objective.progress  # type: ignore[attr-defined]
        return loss

    monkeypatch.setattr(step, "build_objective", interrupted)


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
    per_epoch = 6 if variant == "free" else 3
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
        assert stopped >= 4  # once an epoch, but for the last
        assert results(out) == whole


def test_killed_after_any_write(
    tmp_path: Path,
    run_tiny: RunTiny,
    results: Callable[[Path], Results],
    words: Words,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All that kill -9 leaves behind is the files. Between two renames nothing visible changes, so
    # these are all the states that a kill can leave; a half-written file still has its own name.
    out = tmp_path / "whole"
    moments: list[Path] = []
    rename = os.replace

    def seen(source: Any, target: Any) -> None:
        moments.append(tmp_path / f"{len(moments)}-{Path(target).name}")
        shutil.copytree(out, moments[-1])
        partial = moments[-1] / Path(source).name  # as if the disk had got only half of it
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
    """Where a run stands, by its files: the stage of its last logged epoch, or its end."""
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
    command = [str(script), *words("harp", out, *SLOW, *SLOW_END)]

    def launched() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
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
        process = launched()
        while progress(out) != stage or not started(out, process):
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
    process = launched()
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "all of it in" in printed
    assert results(out) == whole


def started(out: Path, process: subprocess.Popen[str]) -> bool:
    """Whether the process has begun its own work: its libraries loaded, its folder entered."""
    maps = Path(f"/proc/{process.pid}/maps")
    return "torchvision" in maps.read_text() if maps.exists() else True


# --- the same folder, other settings


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
    assert differ == {"report", "config"}
    assert run_tiny("hydra", tmp_path / "out") == first  # and back


def test_the_report_has_the_proofs_of_the_first_points(tmp_path: Path, run_tiny: RunTiny) -> None:
    options = ("--evaluation.verify=20", "--threat.eps=0.001", *CERTIFIED)
    report = run_tiny("hydra", tmp_path / "out", *options)["report"]["report"]
    assert report["certifier"] == "IBP + CROWN + alpha-CROWN-fixed + alpha-CROWN"
    assert len(report["certified"]) == 20 and "1" in report["certified"]
    proved = [words.startswith("verified by ") for words in report["verdicts"]]
    assert report["certified"] == "".join("01"[each] for each in proved)
    assert all(a <= b for a, b in zip(report["certified"], report["flags"]["PGD-3x2"]))  # noqa: B905


def test_an_interrupted_evaluation_goes_on(
    tmp_path: Path, run_tiny: RunTiny, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points that AutoAttack, the proofs or the votes have decided are not decided again."""
    options = ("--objective.name=gaussian", "--threat.eps=1/2550", "--evaluation.autoattack=8")
    options += ("--evaluation.verify=8", "--evaluation.certify=cascade-fixed")
    options += ("--evaluation.smooth=8", "--evaluation.votes=100")
    whole = run_tiny("hydra", tmp_path / "whole", *options)["report"]
    write, written = finish.write_text, []

    def stop(path: Path, text: str) -> None:
        if path.name == "report.json":
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(finish, "write_text", stop)
        assert main(words("hydra", tmp_path / "out", *options)) == 130
    (left,) = (tmp_path / "out").glob("unfinished-evaluation-*")
    assert {path.name for path in left.iterdir()} == {"autoattack", "proofs", "smoothing"}
    monkeypatch.setattr(Journal, "put", lambda self, unit, tensors: written.append(unit))
    assert run_tiny("hydra", tmp_path / "out", *options)["report"] == whole
    assert written == [] and not list((tmp_path / "out").glob("unfinished-*"))


def test_smoothing_leaves_its_table_and_its_curve(tmp_path: Path, run_tiny: RunTiny) -> None:
    noise = ("--objective.name=gaussian", "--objective.sigma=0.12", "--threat.norm=L2")
    smooth = ("--evaluation.smooth=8", "--evaluation.votes=200")
    found = run_tiny("hydra", tmp_path / "out", *noise, *smooth)["report"]["smoothing"]
    assert (found["sigma"], found["n0"], found["n"], found["alpha"]) == (0.12, 100, 200, 0.001)
    assert len(found["radii"]) == 8 and max(found["radii"]) > 0
    right = [a == b for a, b in zip(found["predictions"], found["labels"], strict=True)]
    acr = sum(r for r, ok in zip(found["radii"], right, strict=True) if ok) / 8
    assert found["acr"] == pytest.approx(acr)
    table = (tmp_path / "out" / "smoothing.txt").read_text()
    assert "n=8" in table and f"average certified radius {acr:.4f}" in table
    assert (tmp_path / "out" / "smoothing.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_not_evaluated_twice(
    tmp_path: Path, run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_tiny("hydra", tmp_path / "out")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated or trained again")

    monkeypatch.setattr(finish, "evaluate", never)
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
