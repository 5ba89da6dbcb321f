"""The moving average of the weights, by hand and by torch's own, and in whole runs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_recipe import interrupt_after, small
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robust_plugin import MagnitudePruner
from robust_plugin.pruning import checkpoint
from robust_plugin.recipes.papers.registry import RECIPES, execute, train_recipe
from robust_plugin.recipes.training.averaging import Average
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.statistics import measured_anew

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    x, y = torch.rand(10, 6, generator=generator), torch.randint(3, (10,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def averaged(model: nn.Module, average: Average) -> list[Tensor]:
    with average.in_place(model):
        return [p.detach().clone() for p in model.parameters()]


def by_hand(weights: list[list[Tensor]], decay: float) -> list[Tensor]:
    """The average after all steps, from the weights after each of them."""
    found = [w.double() for w in weights[0]]
    for t, present in enumerate(weights[1:], 2):
        d = min(decay, (1 + t) / (10 + t))
        found = [d * a + (1 - d) * w.double() for a, w in zip(found, present, strict=True)]
    return found


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.7, 0.999])
def test_it_equals_a_loop_by_hand(kind: str, decay: float) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    average = Average(optimizer, decay)
    seen: list[list[Tensor]] = []
    for number in range(40):
        step(model, optimizer, number)
        seen.append([p.detach().clone() for p in model.parameters()])
        if number in (0, 1, 39):
            for ours, wanted in zip(averaged(model, average), by_hand(seen, decay), strict=True):
                torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-7)


def test_it_equals_torchs_average_where_the_decay_is_below_the_limit_of_the_first_steps() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.15))
    average = Average(optimizer, 0.15)  # the limit is 2/11 at the first step, and rises
    for number in range(20):
        step(model, optimizer, number)
        theirs.update_parameters(model)
    wanted = list(theirs.module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(averaged(model, average), wanted, strict=True))


def test_weights_and_buffers_are_as_before_after_the_context_and_after_an_error() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    average = Average(optimizer, 0.9)
    for number in range(5):
        step(model, optimizer, number)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), average.in_place(model):
        assert not torch.equal(model[0].weight, before["0.weight"])  # type: ignore[index,arg-type]
        model[1].running_mean.zero_()  # type: ignore[index,operator,union-attr]
        raise RuntimeError("stop")
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_continues_from_a_checkpoint_to_the_bit(kind: str, tmp_path: Path) -> None:
    def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = net()
        return model, OPTIMIZERS[kind](model.parameters())

    model, optimizer = begun()
    average = Average(optimizer, 0.99)
    for number in range(20):
        step(model, optimizer, number)
        if number == 9:
            checkpoint.save(tmp_path / "c.safetensors", model=model, optimizer=optimizer)
    again, continued = begun()
    saved = checkpoint.load(tmp_path / "c.safetensors")
    saved.restore(model=again, optimizer=continued)
    second = Average(continued, 0.99)
    second.resume(10)
    for number in range(10, 20):
        step(again, continued, number)
    for a, b in zip(averaged(model, average), averaged(again, second), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_that_gets_its_first_gradient_late() -> None:
    """Adam makes its state at the first gradient, unless the state holds something already."""
    model = net()
    model[3].requires_grad_(True)  # type: ignore[index]
    optimizer = OPTIMIZERS["adam"](model.parameters())
    average = Average(optimizer, 0.5)
    optimizer.zero_grad()
    model[:1](torch.rand(4, 6)).sum().backward()  # type: ignore[index]
    optimizer.step()
    step(model, optimizer, 0)
    assert torch.equal(averaged(model, average)[-1], list(model.parameters())[-1])
    step(model, optimizer, 1)
    assert not torch.equal(averaged(model, average)[-1], list(model.parameters())[-1])


def test_the_average_has_no_rests_of_pruned_weights() -> None:
    """While the density falls, weights that are pruned later are in the average at first."""
    model = net()
    pruner = MagnitudePruner(model, 0.2, schedule="geometric")
    optimizer = OPTIMIZERS["sgd"](pruner.set_phase("shrink"))
    pruner.follow(optimizer, epochs=1, steps_per_epoch=10)
    average = Average(optimizer, 0.99)
    for number in range(10):
        step(model, optimizer, number)
    masks = [mask.mask.clone() for mask in pruner.masks]
    with average.in_place(model):
        for layer, mask in zip((model[0], model[3]), masks, strict=True):  # type: ignore[index]
            assert torch.equal(layer._parameters["weight"] != 0, mask)
    assert all(torch.equal(a.mask, b) for a, b in zip(pruner.masks, masks, strict=True))


# --- in runs

AVERAGE = {"average": 0.8}
FINETUNE = {"epochs": 3, "lr": 0.1}

RECIPES_WITH = {
    "hydra": ("hydra", {}),
    "gradual": ("gradual", {}),
    "magnitude in rounds": ("magnitude", {"rounds": 2, "finetune": {"epochs": 4, "lr": 0.1}}),
    "gradual magnitude": ("magnitude", {"schedule": "geometric"}),
}


@contextmanager
def weights_of_stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Note, while a run trains its finetune stage, the weights after each step and the models."""
    found: dict[str, Any] = {"steps": [], "best": None, "stage": ""}
    enter, best = Run.enter, Run.save_best

    def entered(run: Run, name: str, *rest: Any) -> None:
        found["stage"] = name
        found["steps"].clear()
        enter(run, name, *rest)

    def saved(run: Run, name: str, **states: Any) -> None:
        if name == "finetune":
            found["best"] = len(found["steps"])
        best(run, name, **states)

    handle = register_optimizer_step_post_hook(
        lambda optimizer, *_: found["steps"].append(
            [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        )
    )
    monkeypatch.setattr(Run, "enter", entered)
    monkeypatch.setattr(Run, "save_best", saved)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("variant", RECIPES_WITH)
def test_the_final_network_is_the_average_with_statistics_of_its_own(
    variant: str, select: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, more = RECIPES_WITH[variant]
    finetune = {**FINETUNE, **more.get("finetune", {}), "select": select}
    config = small(recipe, density=0.3, regularizers=AVERAGE, **{**more, "finetune": finetune})
    with weights_of_stage(monkeypatch) as found:
        run = Run(tmp_path, config)
        model = train_recipe(recipe, run)
    assert found["stage"] == "finetune"
    count = found["best"] if select == "best" else len(found["steps"])
    assert count % 3 == 0  # at the end of an epoch
    wanted = by_hand(found["steps"][:count], 0.8)
    names = [name for name, _ in model.named_parameters()]
    last = dict(zip(names, found["steps"][-1], strict=True))
    for (name, parameter), value in zip(model.named_parameters(), wanted, strict=True):
        kept = parameter != 0 if name in ("0.weight", "3.weight", "6.weight") else ...
        torch.testing.assert_close(parameter.double()[kept], value[kept], rtol=1e-4, atol=1e-6)
        assert not torch.equal(parameter, last[name])
    total = sum(model.get_parameter(f"{n}.weight").numel() for n in (0, 3, 6))
    ones = sum(int(model.get_parameter(f"{n}.weight").count_nonzero()) for n in (0, 3, 6))
    assert ones == pytest.approx(0.3 * total, abs=3)
    # BatchNorm's statistics are those of these weights.
    stored = {n: t.clone() for n, t in model.named_buffers() if "running" in n}
    epochs = count // 3
    run.enter("finetune", config.finetune, None)
    measured_anew(run, "finetune", model, config.finetune, epoch=epochs, epochs=epochs)
    for name, tensor in model.named_buffers():
        if name in stored:
            torch.testing.assert_close(stored[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("on_planted")
def test_the_best_checkpoint_holds_the_average_and_the_last_one_both(tmp_path: Path) -> None:
    config = small("hydra", density=0.3, regularizers=AVERAGE, finetune={"epochs": 1, "lr": 0.1})
    model = train_recipe("hydra", Run(tmp_path, config))
    best = load_file(tmp_path / "finetune.best.safetensors")
    last = load_file(tmp_path / "finetune.safetensors")
    weight = model.get_parameter("6.weight")
    assert torch.equal(best["model/6.weight"], weight)
    assert not torch.equal(last["model/6.weight"], weight)
    averages = [t for name, t in last.items() if name.endswith("/average")]
    mask = weight != 0
    assert any(t.shape == mask.shape and torch.equal(t * mask, weight) for t in averages)
    assert not any("average" in name for name in load_file(tmp_path / "prune.safetensors"))


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize("variant", RECIPES_WITH)
def test_interrupted_in_every_epoch_it_gives_the_same(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, more = RECIPES_WITH[variant]
    select = {"finetune": {**FINETUNE, **more.get("finetune", {}), "select": "last"}}
    config = small(recipe, density=0.3, regularizers=AVERAGE, **{**more, **select})
    execute(recipe, config, tmp_path / "whole")
    stopped = 0
    while True:
        with monkeypatch.context() as patch:
            interrupt_after(patch, 4)  # one epoch, and a step of the next
            try:
                execute(recipe, config, tmp_path / "parts")
                break
            except KeyboardInterrupt:
                stopped += 1
    epochs = sum(s.epochs for s in RECIPES[recipe].stages(config).values())
    assert stopped == epochs - 1
    for name in ("log.jsonl", "model.safetensors"):
        whole, parts = ((tmp_path / each / name) for each in ("whole", "parts"))
        if name == "log.jsonl":
            assert whole.read_text() == parts.read_text()
            continue
        ours, theirs = load_file(whole), load_file(parts)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    reports = [
        json.loads((tmp_path / each / "report.json").read_text())["report"]
        for each in ("whole", "parts")
    ]
    assert reports[0] == reports[1]
