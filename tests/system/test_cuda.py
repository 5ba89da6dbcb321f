"""On a GPU everything is what it is on a CPU, or what an independent computation says."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin import (
    IBP,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    MinimumNorm,
    Pruner,
    Smoothed,
    ThreatModel,
    adversarial,
    certified,
    evaluate,
    pgd,
    trades,
)
from robust_plugin.attacks.contract import guarded
from robust_plugin.masks.select import topk_mask
from robust_plugin.pruning import checkpoint
from robust_plugin.recipes.training import loop
from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.random import forked

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Build = Callable[..., nn.Module]
Batch = tuple[Tensor, Tensor]
THREAT = ThreatModel("Linf", eps=0.1)
# Directions of L2 attacks are continuous: rounding does not turn a sign where a gradient is 0.
ROUND = ThreatModel("L2", eps=0.5)


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def rng_state() -> Tensor:
    return torch.cuda.get_rng_state() if DEVICE == "cuda" else torch.get_rng_state()


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that withstands a little, on the CPU, and 64 points that it has not seen."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(100):
            chosen = torch.randint(64, len(x), (128,))
            noisy = x[chosen] + 0.1 * torch.randn(128, 1, 8, 8).sign()
            loss = F.cross_entropy(model(noisy), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False), x[:64], y[:64]


def on(device: str, found: tuple[nn.Module, Tensor, Tensor]) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = found
    return copy.deepcopy(model).to(device), x.to(device), y.to(device)


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:  # auto-LiRPA is not importable as it is
        pytest.skip(f"needs {package}")


def both(of: Callable[[str], Any]) -> tuple[Any, Any]:
    return of("cpu"), of(DEVICE)


# --- masks --------------------------------------------------------------------------------------


def test_masks_are_the_cpus_also_where_scores_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 4097, 300_000):
        for scores in (
            torch.randn(n, generator=generator),
            torch.randint(-3, 4, (n,), generator=generator).float(),
            torch.zeros(n),
        ):
            for count in {1, n // 10 or 1, n - 1 or 1, n}:
                found = topk_mask(scores.to(DEVICE), count).cpu()
                assert torch.equal(found, topk_mask(scores, count))
    with pytest.raises(ValueError, match="hold NaN"):
        topk_mask(torch.tensor([1.0, torch.nan, 2.0], device=DEVICE), 1)


PRUNERS: dict[str, Callable[[nn.Module], Pruner]] = {
    "hydra": lambda model: HydraPruner(model, 0.1),
    "held": lambda model: HarpPruner(model, 0.1),
    "hinge": lambda model: HarpPruner(model, 0.1, control="hinge"),
    "lamp": lambda model: MagnitudePruner(model, 0.1, rates="lamp"),
    "2:4": lambda model: HydraPruner(model, pattern="2:4", exclude=[model[0]]),
}


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_pruner_moves_with_its_network(kind: str, cnn: Build, batch: Batch) -> None:
    here, moved, there = cnn().eval(), cnn().eval(), cnn().eval().to(DEVICE)
    pruners = [PRUNERS[kind](model) for model in (here, moved, there)]
    moved.to(DEVICE)
    for pruner in pruners:
        pruner.update_masks()
    for one, other, third in zip(*(pruner.masks for pruner in pruners), strict=True):
        assert other.mask.device.type == third.mask.device.type == torch.device(DEVICE).type
        assert torch.equal(one.mask, other.mask.cpu()) and torch.equal(one.mask, third.mask.cpu())
    x = batch[0]
    with torch.no_grad(), exact(x.to(DEVICE)):
        torch.testing.assert_close(moved(x.to(DEVICE)).cpu(), here(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(moved(x.to(DEVICE)), there(x.to(DEVICE)))
    moved.cpu()
    pruners[1].update_masks()
    with torch.no_grad():
        assert torch.equal(moved(x), here(x))


# --- training -----------------------------------------------------------------------------------


def pruned(model: nn.Module, pruner: Pruner, data: Batch, steps: int = 4) -> dict[str, Any]:
    """Prune and fine-tune against PGD without noise; losses, masks, and the finished outputs."""
    x, y = data
    objective = adversarial(pgd(ROUND, steps=3, start="clean"))
    losses, masks = [], []
    for phase in ("prune", "finetune"):
        optimizer = torch.optim.SGD(pruner.set_phase(phase), lr=0.05, momentum=0.9)
        if phase == "prune":
            pruner.follow(optimizer, epochs=1, steps_per_epoch=steps)
        for _ in range(steps):
            loss = objective(model, x, y) + pruner.budget_penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        masks += [mask.mask.cpu() for mask in pruner.masks]
    pruner.finalize()
    assert not any("pruner_masks" in name for name in model.state_dict())
    return {"losses": losses, "masks": masks, "logits": model.eval()(x).detach().cpu()}


@pytest.mark.filterwarnings("ignore:the rates ended at")
@pytest.mark.parametrize("kind", ["hydra", "held", "hinge"])
def test_pruning_and_fine_tuning_equal_the_cpus(kind: str, cnn: Build, batch: Batch) -> None:
    def run(device: str) -> dict[str, Any]:
        model = cnn().double().to(device)
        return pruned(
            model, PRUNERS[kind](model), (batch[0].double().to(device), batch[1].to(device))
        )

    here, there = both(run)
    # The hinge adds what float32 rates say.
    assert there["losses"] == pytest.approx(here["losses"], rel=1e-6 if kind == "hinge" else 1e-8)
    assert len(set(here["losses"])) == len(here["losses"])
    for one, other in zip(here["masks"], there["masks"], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(there["logits"], here["logits"], rtol=1e-6, atol=1e-8)


def test_bfloat16_and_channels_last(batch: Batch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).to(DEVICE, memory_format=torch.channels_last)
    pruner = HarpPruner(model, 0.3)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1, momentum=0.9)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=2)
    x = torch.rand(16, 3, 8, 8).to(DEVICE, memory_format=torch.channels_last)
    y = batch[1].to(DEVICE)
    seen: list[tuple[torch.dtype, bool]] = []

    def see(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        layout = torch.channels_last
        seen.append((out.dtype, all(t.is_contiguous(memory_format=layout) for t in (*args, out))))

    hook = model[3].register_forward_hook(see)
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            losses.append(trades(THREAT, steps=3)(model, x, y))
    hook.remove()
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
    assert len(seen) == 12 and all(kept for _, kept in seen)  # reference, attack, loss
    assert [dtype for dtype, _ in seen] == [torch.float32] * 6 + [torch.bfloat16] * 6
    optimizer.zero_grad()
    losses[1].backward()
    optimizer.step()
    for mask in pruner.masks:
        assert mask.scores.dtype == mask.rate.dtype == torch.float32
        assert mask.scores.grad.dtype == torch.float32
        assert bool(mask.scores.grad.isfinite().all()) and bool(mask.scores.grad.any())
        assert bool(mask.rate.grad.isfinite()) and bool(mask.scores.isfinite().all())
    for mask in (pruner.masks[0], pruner.masks[1]):
        assert mask.mask.is_contiguous(memory_format=torch.channels_last)
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_compiled_training_equals_eager(cnn: Build, batch: Batch) -> None:
    x, y = (each.to(DEVICE) for each in batch)

    def losses(*, compiled: bool) -> list[float]:
        model = cnn().to(DEVICE)
        pruner = HydraPruner(model, 0.1)
        optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.05, momentum=0.9)
        pruner.follow(optimizer)
        if compiled:
            torch.compiler.reset()
            model.compile()
        objective, found = adversarial(pgd(THREAT, steps=2, start="clean")), []
        for _ in range(4):
            loss = objective(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    with exact(x):
        assert losses(compiled=True) == pytest.approx(losses(compiled=False), rel=1e-4)


# --- generators ---------------------------------------------------------------------------------


def test_a_fork_seeds_the_gpu_and_gives_it_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4, device=DEVICE)
    torch.manual_seed(6)
    before, cpu = rng_state(), torch.get_rng_state()
    with forked(5, torch.device(DEVICE)):
        assert torch.equal(torch.rand(4, device=DEVICE), expected)
    assert torch.equal(rng_state(), before) and torch.equal(torch.get_rng_state(), cpu)


def test_the_guard_draws_nothing_of_its_own(cnn: Build, batch: Batch) -> None:
    model, (x, y) = cnn().to(DEVICE), (each.to(DEVICE) for each in batch)
    for attack in (pgd(THREAT, steps=2, start="clean"), guarded(lambda model, x, y: x, THREAT)):
        before = rng_state()
        attack(model, x, y)
        assert torch.equal(rng_state(), before)
    pgd(THREAT, steps=1)(model, x, y)
    assert not torch.equal(rng_state(), before)  # noise comes from the GPU's own generator


def test_an_evaluation_repeats_itself(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = on(DEVICE, digits)
    torch.manual_seed(7)
    attacks = [pgd(THREAT, steps=5, restarts=2, keep="best"), MinimumNorm(THREAT, 3, 20)]
    before = rng_state()
    reports = [evaluate(model, [(x.cpu(), y.cpu())], attacks=attacks) for _ in range(2)]
    assert torch.equal(rng_state(), before)
    assert reports[0].flags == reports[1].flags and not reports[0].findings
    plain = evaluate(on("cpu", digits)[0], [(x.cpu(), y.cpu())], attacks=attacks[1:])
    pairs = zip(reports[0].curve.distances, plain.curve.distances, strict=True)
    near = [abs(a - b) < 5e-3 for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    assert len(near) >= 60 and sum(near) >= 0.8 * len(near)


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["screen", "standard"])
def test_autoattacks_verdicts_are_the_cpus(
    version: Any,
    tmp_path: Path,
    digits: tuple[nn.Module, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = pytest.importorskip("pyautoattack").AutoAttack
    from robust_plugin.adapters.autoattack import AutoAttack

    if version == "standard":  # every component, a few steps of each
        as_published = library._set_version

        def short(self: Any, version: str = "standard") -> None:
            as_published(self, version)
            self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
            self.square.n_queries = 200

        monkeypatch.setattr(library, "_set_version", short)

    def stands(device: str, **options: Any) -> list[bool]:
        model, x, y = on(device, digits)
        with exact(x):  # one network on both
            attack = AutoAttack(THREAT, version=version, seed=0, batch_size=32, **options)
            return (model(attack(model, x, y)).argmax(1) == y).tolist()

    before = rng_state()
    found = stands(DEVICE)
    assert torch.equal(rng_state(), before)
    here = stands("cpu")
    assert 10 <= sum(found) <= 58
    assert sum(a == b for a, b in zip(here, found, strict=True)) >= 62
    if version == "standard":
        return

    def stop(progress: Any) -> None:
        if progress.done:  # after the first batch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stands(DEVICE, journal=tmp_path / "journal", progress=stop)
    assert stands(DEVICE, journal=tmp_path / "journal") == found


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN"])
def test_bounds_are_the_cpus(method: Any, digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    threat = ThreatModel("Linf", eps=0.02)

    def margins(device: str) -> Tensor:
        model, x, y = on(device, digits)
        if method == "IBP":
            return IBP(threat).margins(model, x[:16], y[:16]).cpu()
        needs("auto_LiRPA")
        from robust_plugin.adapters.auto_lirpa import LiRPA

        return LiRPA(threat, method).margins(model, x[:16], y[:16]).cpu()

    here, there = both(margins)  # of one network, though convolutions may be in TF32 elsewhere
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bounds", ["ibp", "crown-ibp"])
def test_a_certified_loss_reaches_the_scores(bounds: str, cnn: Build, batch: Batch) -> None:
    threat, options = ThreatModel("Linf", eps=0.01), {}
    if bounds == "crown-ibp":
        needs("auto_LiRPA")
        from robust_plugin.adapters.auto_lirpa import LiRPA

        options = {"bounds": LiRPA(threat, "CROWN-IBP").bounds}

    def gradients(device: str) -> list[Tensor]:
        model = cnn().to(device)
        pruner = HydraPruner(model, 0.5)
        pruner.follow(torch.optim.SGD(pruner.set_phase("prune"), lr=0.1))
        x, y = (each.to(device) for each in batch)
        with exact(x):
            certified(threat, kappa=(0.5, 0.5), **options)(model, x, y).backward()
        return [mask.scores.grad.cpu() for mask in pruner.masks]

    here, there = both(gradients)
    for one, other in zip(here, there, strict=True):
        assert bool(other.any())
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-4 * float(one.abs().max()))


def test_smoothing(digits: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    smoothed = Smoothed(sigma=0.1, n=500)

    def run(device: str, **options: Any) -> Any:
        model, x, y = on(device, digits)
        return smoothed.certify(model, x[:24], y[:24], **options)

    here, there = both(run)
    again = run(DEVICE, journal=tmp_path / "journal")
    assert torch.equal(again.radii, there.radii)
    assert torch.equal(run(DEVICE, journal=tmp_path / "journal").radii, there.radii)
    answered = (here.predictions >= 0) & (there.predictions >= 0)
    assert int(answered.sum()) >= 16  # of other noise, the same answers
    assert torch.equal(here.predictions[answered], there.predictions[answered])
    assert float((here.radii - there.radii).abs().max()) < 0.1


# --- files and exports --------------------------------------------------------------------------


@pytest.mark.parametrize(("saved", "loaded"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_a_checkpoint_goes_on_elsewhere(
    saved: str, loaded: str, tmp_path: Path, cnn: Build, batch: Batch
) -> None:
    objective = adversarial(pgd(THREAT, steps=2, start="clean"))

    def begin(device: str) -> tuple[nn.Module, Pruner]:
        model = cnn().double().to(device)
        return model, HarpPruner(model, 0.2)

    def optimizer_of(pruner: Pruner) -> torch.optim.Optimizer:
        return torch.optim.Adam(pruner.set_phase("prune"), lr=0.01)

    def steps(device: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        found = []
        for _ in range(2):
            loss = objective(model, batch[0].double().to(device), batch[1].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    model, pruner = begin(saved)
    optimizer = optimizer_of(pruner)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=4)
    steps(saved, model, optimizer)
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, model=model, pruner=pruner, optimizer=optimizer)
    drawn = torch.rand(3, device=saved)

    other, resumed = begin(loaded)
    found = checkpoint.load(path)
    found.restore(model=other, pruner=resumed)
    again = optimizer_of(resumed)
    found.restore(optimizer=again, rng=True)
    resumed.follow(again, epochs=1, steps_per_epoch=4)
    assert torch.equal(torch.rand(3, device=saved), drawn)
    # The bytes of a mask's state are on the CPU wherever the mask is.
    tensors = [t for name, t in other.state_dict().items() if not name.endswith("_extra_state")]
    devices = {t.device.type for t in (*tensors, *(mask.mask for mask in resumed.masks))}
    assert devices == {torch.device(loaded).type}
    for one, two in zip(pruner.masks, resumed.masks, strict=True):
        assert torch.equal(one.mask.cpu(), two.mask.cpu())
    expected = steps(saved, model, optimizer)
    assert steps(loaded, other, again) == pytest.approx(expected, rel=1e-8)


@pytest.mark.filterwarnings("ignore:the rates ended at")
def test_channels_are_removed_exactly(batch: Batch) -> None:
    pytest.importorskip("torch_pruning")
    from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels
    from robust_plugin.recipes.models.networks import resnet18

    torch.manual_seed(0)
    model = resnet18(10, (3, 32, 32), width=16).to(DEVICE)
    x = torch.rand(8, 3, 32, 32, device=DEVICE)
    groups = channel_groups(model, x[:1])
    pruner = HarpPruner(model, 0.3, budget="flops", groups=groups, example_inputs=x[:1])
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.05)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=2)
    for _ in range(2):
        loss = F.cross_entropy(model(x), torch.arange(8, device=DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pruner.set_phase("finetune")
    small = remove_channels(pruner, x[:2])  # raises if the outputs differ, TF32 or not
    assert small.parameters[1] < 0.6 * small.parameters[0]
    assert all(p.device.type == torch.device(DEVICE).type for p in small.model.parameters())
    with torch.no_grad(), exact(x):
        torch.testing.assert_close(small.model.eval()(x), model.eval()(x), rtol=1e-3, atol=1e-4)


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Ctrl-C once so many epochs have been validated."""

    validated = loop.validated

    def arrange(epochs: int) -> None:
        left = [epochs]

        def interrupted(*args: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                monkeypatch.setattr(loop, "validated", validated)
                raise KeyboardInterrupt
            return validated(*args)

        monkeypatch.setattr(loop, "validated", interrupted)

    yield arrange


def test_a_recipe_in_bfloat16_is_interrupted_and_goes_on(
    tmp_path: Path, stop_after: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    from robust_plugin.recipes.cli import main

    def words(out: str) -> list[str]:
        return [
            "harp",
            "--config=harp/digits",
            f"--out={tmp_path / out}",
            f"--device={DEVICE}",
            "--precision=bf16",
            "--channels-last",
            "--threat.eps=0.03",
            "--objective.steps=2",
            "--pretraining=benign",
            "--pretrain.epochs=12",
            "--prune.epochs=2",
            "--finetune.epochs=1",
            "--evaluation.restarts=1",
            "--evaluation.autoattack=0",
        ]

    def log(out: str) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (tmp_path / out / "log.jsonl").read_text().splitlines()
        ]

    assert main([*words("dry"), "--dry-run"]) == 0
    assert "of the GPU" in capsys.readouterr().out or DEVICE == "cpu"
    assert main(words("whole")) == 0
    stop_after(13)  # within the prune phase
    assert main(words("parts")) == 130
    assert len(log("parts")) == 13
    assert main(words("parts")) == 0
    for one, other in zip(log("whole"), log("parts"), strict=True):
        assert (one["stage"], one["epoch"]) == (other["stage"], other["epoch"])
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert log("whole")[-1]["clean"] > 0.5

    run, out = str(tmp_path / "whole"), tmp_path / "evaluation"
    attacks = ["--attack", "pgd", "screen", "--certify", "ibp", "--n=64", "--checks=16"]
    assert main(["evaluate", run, f"--out={out}", f"--device={DEVICE}", *attacks]) == 0
    report = json.loads((out / "report.json").read_text())
    assert len(report["flags"]["clean"]) == 64 and (out / "report.html").is_file()
