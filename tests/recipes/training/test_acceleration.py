"""Precision, memory format, compilation and trackers, which do not change the method."""

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import LoggerType
from safetensors.torch import load_file
from torch import Tensor, nn

from robust_plugin.certificates import checks as core_checks
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.recipes.training import acceleration as acceleration_module
from robust_plugin.recipes.training import step
from robust_plugin.recipes.training.objective import build_objective
from robust_plugin.runtime.files import read_tensors, write_tensors
from robust_plugin.threat.model import ThreatModel

Words = Callable[..., list[str]]
RunTiny = Callable[..., dict[str, Any]]


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One record per call of the objective: dtypes of all layers' outputs and of the loss."""
    seen: list[dict[str, Any]] = []

    def watched(config: ObjectiveConfig, threat: ThreatModel, **schedule: Any) -> Any:
        objective = build_objective(config, threat, **schedule)

        def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            dtypes: set[torch.dtype] = set()
            hooks = [
                layer.register_forward_hook(lambda layer, inputs, output: dtypes.add(output.dtype))
                for layer in model.modules()
                if isinstance(layer, nn.Conv2d | nn.Linear)
            ]
            found: Tensor = objective(model, x, y)
            for hook in hooks:
                hook.remove()
            formats = x.is_contiguous(memory_format=torch.channels_last)
            seen.append({"dtypes": dtypes, "loss": found.dtype, "channels_last": formats})
            return found

        return loss

    monkeypatch.setattr(step, "build_objective", watched)
    return seen


def test_bfloat16_in_every_phase_and_float32_after_it(
    tmp_path: Path, run_tiny: RunTiny, forwards: list[dict[str, Any]]
) -> None:
    run_tiny("harp", tmp_path / "out", "--precision=bf16", "--prune.lr=0.5")
    assert len(forwards) == 3 * 2 * 3
    for each in forwards:  # for the attack and the loss, in all three stages
        assert each["dtypes"] == {torch.bfloat16} and each["loss"] == torch.float32
    for name in ("pretrain", "prune", "finetune"):
        state = load_file(tmp_path / "out" / f"{name}.safetensors")
        floats = {k: t.dtype for k, t in state.items() if t.is_floating_point()}
        assert set(floats.values()) == {torch.float32}
    scores = load_file(tmp_path / "out" / "prune.safetensors")
    assert all(t.isfinite().all() for t in scores.values() if t.is_floating_point())


def test_float32_after_bfloat16_in_one_process(
    tmp_path: Path, run_tiny: RunTiny, forwards: list[dict[str, Any]]
) -> None:
    run_tiny("hydra", tmp_path / "bf16", "--precision=bf16", "--pretrain.epochs=1")
    forwards.clear()
    run_tiny("hydra", tmp_path / "fp32")
    assert {dtype for each in forwards for dtype in each["dtypes"]} == {torch.float32}


@pytest.mark.parametrize("bounds", ["ibp", "crown-ibp"])
def test_bounds_stay_in_float32_beside_bfloat16(
    tmp_path: Path, run_tiny: RunTiny, bounds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[dict[str, Any]] = []
    refuse_others = core_checks._refuse_others

    def seen(margins: Tensor, itself: Tensor, true: Tensor) -> None:
        judged.append({"dtype": margins.dtype, "rounded": bool((true == true.bfloat16()).all())})
        refuse_others(margins, itself, true)

    monkeypatch.setattr(core_checks, "_refuse_others", seen)
    options = ["--precision=bf16", "--objective.name=certified", f"--objective.bounds={bounds}"]
    run_tiny("hydra", tmp_path / "out", *options, "--threat.eps=1/2550")
    assert judged and not any(each["rounded"] for each in judged)  # validated in float32
    assert {each["dtype"] for each in judged} == {torch.float32}


def test_the_network_is_left_as_it_was(tmp_path: Path, run_tiny: RunTiny) -> None:
    models = []
    prepared = acceleration_module.Acceleration.prepared

    def remembered(self: Any, model: nn.Module) -> Any:
        models.append((model, dict(vars(model))))
        return prepared(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceleration_module.Acceleration, "prepared", remembered)
        run_tiny("hydra", tmp_path / "out", "--precision=bf16")
    assert len(models) == 3
    assert all(vars(model).keys() == before.keys() for model, before in models)


def test_channels_last_changes_rounding_only(
    tmp_path: Path, run_tiny: RunTiny, forwards: list[dict[str, Any]]
) -> None:
    plain = run_tiny("hydra", tmp_path / "plain", "--objective.name=trades")
    assert not any(each["channels_last"] for each in forwards)
    forwards.clear()
    other = run_tiny("hydra", tmp_path / "other", "--objective.name=trades", "--channels-last")
    assert all(each["channels_last"] for each in forwards)
    for a, b in zip(plain["log"], other["log"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)


def test_compiled_training_is_eager_training(
    tmp_path: Path, run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [f"--{stage}.epochs=1" for stage in ("pretrain", "prune", "finetune")]
    eager = run_tiny("hydra", tmp_path / "eager", *short)
    calls: list[nn.Module] = []

    def compile_(model: nn.Module) -> None:  # only traced: machine code would take minutes
        calls.append(model)
        compile_module(model, backend="eager")

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", compile_)
    compiled = run_tiny("hydra", tmp_path / "compiled", "--compile", *short)
    assert len(calls) == 3
    for a, b in zip(eager["log"], compiled["log"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)


@pytest.mark.usefixtures("at_workplace")
def test_what_changes_no_result_does_not_make_a_run_another(
    tmp_path: Path, words: Words, run_tiny: RunTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_tiny("hydra", tmp_path / "out")
    (tmp_path / "out" / "report.json").unlink()
    for more in ("--data.workers=1", "--accumulate=2", "--channels-last", "--tracker=tensorboard"):
        again = run_tiny("hydra", tmp_path / "out", more)
        assert again["log"] == whole["log"] and again["report"] == whole["report"]
    assert main(words("hydra", tmp_path / "out", "--precision=bf16")) == 2
    assert "precision was 'fp32' and is now 'bf16'" in capsys.readouterr().err


def test_a_run_older_than_these_settings_goes_on(tmp_path: Path, run_tiny: RunTiny) -> None:
    whole = run_tiny("hydra", tmp_path / "out")
    saved = [
        tmp_path / "out" / f"{stage}{best}.safetensors"
        for stage in ("pretrain", "prune", "finetune")
        for best in ("", ".best")
    ]
    for path in saved:
        tensors, content = read_tensors(path)
        identity = content["meta"]["identity"] if "meta" in content else content["identity"]
        del identity["precision"], identity["data"]["extra"], identity["data"]["extra_share"]
        identity["data"]["workers"] = 4
        write_tensors(path, tensors, content)
    (tmp_path / "out" / "finetune.safetensors").unlink()
    assert run_tiny("hydra", tmp_path / "out")["log"] == whole["log"]


def test_tensorboard_gets_every_epoch_of_every_stage(tmp_path: Path, run_tiny: RunTiny) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    left = run_tiny("harp", tmp_path / "out", "--tracker=tensorboard")
    events = reader.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    for place, line in enumerate(left["log"]):
        for key in ("loss", "clean", "robust", "density"):
            found = {e.step: e.value for e in events.Scalars(f"{line['stage']}/{key}")}
            assert found[place] == pytest.approx(line[key])  # epochs are numbered over all stages


class Recorder:
    """A stand-in for a run of W&B, which records what it gets."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.logged, self.finished = settings, [], False
        self.config = self
        self.updated: dict[str, Any] = {}

    def update(self, values: dict[str, Any], **_: Any) -> None:
        self.updated = values

    def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_wandb_goes_on_in_the_same_run(
    tmp_path: Path, run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Recorder] = []

    def init(**settings: Any) -> Recorder:
        runs.append(Recorder(**settings))
        return runs[-1]

    package = types.ModuleType("wandb")
    package.init = init  # type: ignore[attr-defined]
    package.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    # accelerate has looked for the package when it was imported.
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    left = run_tiny("hydra", tmp_path / "out", "--tracker=wandb")
    (run,) = runs
    assert run.settings["project"] == "robust-plugin" and run.settings["resume"] == "allow"
    assert run.settings["name"] == "out" and run.finished
    assert [step for step, _ in run.logged] == list(range(6))
    assert run.logged[2][1]["prune/loss"] == left["log"][2]["loss"]
    assert run.updated["density"] == 0.3


@pytest.mark.usefixtures("at_workplace")
def test_a_tracker_that_is_not_installed_is_named_at_once(
    tmp_path: Path,
    words: Words,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(acceleration_module.importlib.util, "find_spec", lambda _: None)
    assert main(words("hydra", tmp_path / "out", "--tracker=wandb")) == 1
    assert (
        "tracker is 'wandb', which is not installed: pip install wandb" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
