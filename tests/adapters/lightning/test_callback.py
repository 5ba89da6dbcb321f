"""PruningCallback in real fits: phases, checkpoints, averages, processes, and what it refuses."""

import math
import os
import subprocess
import sys
from pathlib import Path

import lightning_modules
import lightning_ranks
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import FSDPStrategy
from lightning_modules import DENSITY, EPOCHS, KEPT, OPTIONS, Net, fit, network, non_zeros, same
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset

from robust_plugin import (
    GradualPruner,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    dense_state_dict,
)
from robust_plugin.adapters.lightning import PruningCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]


def harp(module):
    return HarpPruner(module, DENSITY)


def pruning(make=harp, **options):
    return PruningCallback(make, **{"epochs": EPOCHS, **options})


def checkpoints(folder, **options):
    return ModelCheckpoint(dirpath=folder, save_top_k=-1, **options)


def written(folder):
    """The checkpoints in the order in which they were written."""
    return sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.rpartition("=")[2]))


# --- one fit ------------------------------------------------------------------------------------


def by_hand(make=harp, epochs=EPOCHS):
    """The same job as a plain loop; group 0 of the prune phase has norms too, without decay."""
    model = Net()
    pruner = make(model)

    def optimizer_of(phase):
        def make(groups):
            params = [p for group in groups for p in group["params"]]
            decay = {"weight_decay": 0.0} if phase == "prune" else {}
            optimizer = torch.optim.SGD(params, **{**OPTIONS, **decay})
            return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs[phase])

        return make

    loader = DataLoader(lightning_modules.task(), 16)
    makers = {name: optimizer_of(name) for name in epochs}
    for phase in pruner.phases(makers, epochs=epochs, steps_per_epoch=len(loader)):
        for _ in phase:
            for x, y in loader:
                phase.optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                phase.optimizer.step()
            phase.scheduler.step()
    return model


def test_a_fit_equals_a_plain_loop_of_the_phases():
    callback = pruning()
    module = fit(callback)
    assert same(module, by_hand())
    assert non_zeros(module) == KEPT == callback.pruner.kept
    assert callback.pruner.phase == "finalized"
    assert callback.pruner.phase_done == ("finetune", 18)
    Net().load_state_dict(module.state_dict(), strict=True)
    assert module.max_epochs[1:] == [2, 3]  # what configure_optimizers saw in each phase


# --- a density that falls while the weights train -----------------------------------------------

SHRINK = {
    "gradual": (
        lambda module: GradualPruner(module, DENSITY),
        {"shrink": 2, "prune": 1, "finetune": 2},
    ),
    "both": (
        lambda module: GradualPruner(module, DENSITY, learn=("scores", "rates")),
        {"shrink": 2, "prune": 2, "finetune": 1},
    ),
    "magnitude": (
        lambda module: MagnitudePruner(module, DENSITY, schedule="geometric"),
        {"shrink": 3, "finetune": 2},
    ),
}


class Seen(Callback):
    """The phase, the share kept and the momentum at the start of each step."""

    def __init__(self, callback):
        self.callback, self.steps = callback, []

    def on_train_batch_start(self, trainer, pl_module, *_):
        pruner, (optimizer,) = self.callback.pruner, trainer.optimizers
        weight = pl_module.model[6]._parameters["weight"]
        momentum = optimizer.state.get(weight, {}).get("momentum_buffer")
        self.steps.append(
            (pruner.phase, pruner.kept, None if momentum is None else momentum.clone())
        )


@pytest.mark.parametrize("kind", SHRINK)
def test_a_fit_with_a_shrink_phase_equals_a_plain_loop(kind):
    make, epochs = SHRINK[kind]
    callback = pruning(make, epochs=epochs)
    seen = Seen(callback)
    module = fit(callback, seen)
    assert same(module, by_hand(make, epochs))
    assert non_zeros(module) == KEPT == callback.pruner.kept
    assert callback.pruner.phase == "finalized"
    assert module.max_epochs[1:] == list(epochs.values())
    # Six steps an epoch: each phase begins with the first step after the last one of its former.
    wanted = [name for name, count in epochs.items() for _ in range(6 * count)]
    assert [phase for phase, *_ in seen.steps] == wanted
    kept = [count for _, count, _ in seen.steps]
    assert kept == sorted(kept, reverse=True) and kept[0] == 936 and kept[-1] == KEPT
    shrunk = kept[6 * epochs["shrink"]]  # when the next phase begins
    if kind == "magnitude":
        assert shrunk == KEPT
    elif kind == "gradual":  # which goes to the last halving when its scores are learned
        assert shrunk == KEPT and kept[6 * epochs["shrink"] - 1] > 2 * KEPT - 6
    else:  # the budget of learned rates falls from twice the density
        assert 1.8 * KEPT < shrunk <= 2 * KEPT
    first, *_, last = (momentum for phase, _, momentum in seen.steps if phase == "shrink")
    assert first is None and last is not None
    begins = [i for i in range(1, 30) if seen.steps[i][0] != seen.steps[i - 1][0]]
    carried = [seen.steps[i][2] is not None for i in begins]
    # Momentum goes on where no prune phase lies between, as both phases train the same weights.
    assert carried == ([True] if kind == "magnitude" else [False, False])


def test_momentum_is_that_of_the_last_step_of_the_shrink_phase():
    """With a learning rate of zero in fine-tuning, only momentum could move the weights."""
    make, epochs = SHRINK["magnitude"]
    callback, states = pruning(make, epochs=epochs), []

    class Before(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            (optimizer,) = trainer.optimizers
            states.append({p: s["momentum_buffer"].clone() for p, s in optimizer.state.items()})

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if callback.pruner.phase == "finetune" and batch_idx == 0 and len(states) == 3:
                (optimizer,) = trainer.optimizers
                states.append({p: s["momentum_buffer"] for p, s in optimizer.state.items()})
                self.equal = all(torch.equal(states[3][p], t) for p, t in states[2].items())

    before = Before()
    fit(callback, before)
    assert before.equal and states[2].keys() == states[3].keys()


@pytest.mark.parametrize("kind", SHRINK)
def test_every_checkpoint_of_a_shrinking_pruner_continues_to_the_same_network(tmp_path, kind):
    make, epochs = SHRINK[kind]
    module = fit(pruning(make, epochs=epochs), checkpoints(tmp_path), enable_checkpointing=True)
    files = written(tmp_path)
    assert len(files) == 5
    for file in files:
        assert same(fit(pruning(make, epochs=epochs), resume=file), module), file.name
    before = sum(epochs.values()) - epochs["finetune"]
    for epoch, file in enumerate(files):
        others = [
            n for n in torch.load(file, weights_only=True)["state_dict"] if "pruner_masks" in n
        ]
        assert bool(others) == (epoch < before)


def test_an_early_stop_waits_for_fine_tuning_after_a_shrink_phase():
    for kind, epochs, stops in (
        ("magnitude", {"shrink": 3, "finetune": 4}, 4),
        ("gradual", {"shrink": 2, "prune": 2, "finetune": 4}, 5),
    ):
        stop = EarlyStopping("loss", patience=1, min_delta=100)
        callback = pruning(SHRINK[kind][0], epochs=epochs)
        module = fit(callback, stop, max_epochs=sum(epochs.values()))
        assert (stop.stopped_epoch, module.trainer.current_epoch) == (stops, stops + 1)
        assert non_zeros(module) == KEPT


def test_the_shrink_phase_needs_its_epochs():
    make, _ = SHRINK["magnitude"]
    with pytest.raises(ValueError, match="without 'shrink', in which the density of MagnitudePru"):
        fit(pruning(make, epochs={"finetune": 5}))
    with pytest.raises(
        ValueError, match="legal: whole numbers above 0, for 'prune' and 'finetune'"
    ):
        fit(pruning(epochs={"shrink": 1, "prune": 2, "finetune": 2}))


class Changes(Callback):
    """Which parameters each epoch changes."""

    def __init__(self):
        self.names = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        now = dict(pl_module.named_parameters())
        self.names.append({n for n, p in now.items() if not torch.equal(p, self.before[n])})


def test_only_what_the_phase_trains_changes():
    changes = Changes()
    fit(pruning(lambda module: HarpPruner(module.model, DENSITY)), changes)
    norms = {"model.1.weight", "model.1.bias"}
    layers = {f"model.{i}.{name}" for i in (0, 3, 6) for name in ("weight", "bias")}
    masks = {
        f"model.{i}.pruner_masks.0.group.{name}" for i in (0, 3, 6) for name in ("scores", "rate")
    }
    assert changes.names == [masks | norms] * 2 + [layers | norms] * 3


class TwoOptimizers(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, _):
        both = self.optimizers()
        for each in both:
            each.zero_grad()
        self.manual_backward(super().training_step(batch, _))
        for each in both:
            each.step()

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]
        return [torch.optim.SGD(matrices, lr=0.1), torch.optim.Adam(others, lr=0.01)]


class Late(Net):
    def __init__(self):
        super().__init__()
        self.model = None

    def configure_model(self):
        if self.model is None:
            self.model = network()


class Hinge(Net):
    def training_step(self, batch, _):
        return super().training_step(batch, _) + self.penalty()


@pytest.mark.parametrize("kind", ["two optimizers", "configure_model", "hinge"])
def test_modules_of_other_kinds(kind):
    module = {"two optimizers": TwoOptimizers, "configure_model": Late, "hinge": Hinge}[kind]()
    control = "hinge" if kind == "hinge" else "held"
    callback = pruning(lambda m: HarpPruner(m, DENSITY, control=control, gamma_step=100))
    calls = []
    module.penalty = lambda: calls.append(1) or callback.pruner.budget_penalty()
    assert non_zeros(fit(callback, module=module)) == KEPT
    assert len(calls) == (30 if kind == "hinge" else 0)


@pytest.mark.parametrize(
    ("make", "epochs"),
    [(MagnitudePruner, {"finetune": 2}), (HydraPruner, {"prune": 2}), (HydraPruner, EPOCHS)],
)
def test_other_pruners(make, epochs):
    callback = pruning(lambda module: make(module.model, DENSITY), epochs=epochs)
    assert non_zeros(fit(callback)) == KEPT


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("16-mixed", torch.float32),
        ("bf16-mixed", torch.float32),
        ("16-true", torch.float16),
        ("bf16-true", torch.bfloat16),
    ],
)
def test_precisions(precision, dtype):
    module = fit(pruning(), precision=precision)
    assert non_zeros(module) == KEPT
    assert {p.dtype for p in module.parameters()} == {dtype}


def test_accumulated_batches_count_as_one_step():
    callback = pruning()
    module = fit(callback, accumulate_grad_batches=4)
    steps = callback.pruner.steps
    assert (steps.step, steps.steps_per_epoch) == (4, 2)
    assert module.trainer.global_step == 10
    assert non_zeros(module) == KEPT


class Endless(IterableDataset):
    def __iter__(self):
        return iter(lightning_modules.task())


def test_a_loader_without_length_needs_the_number_of_steps():
    loader = DataLoader(Endless(), 16)
    with pytest.raises(ValueError, match="no length; give PruningCallback.*steps_per_epoch"):
        lightning_modules.trainer(pruning()).fit(Net(), loader)
    module = Net()
    lightning_modules.trainer(pruning(steps_per_epoch=6)).fit(module, loader)
    assert non_zeros(module) == KEPT


@pytest.mark.parametrize("batches", [True, 3])
def test_fast_dev_run_runs_each_phase(batches):
    callback = pruning(steps_per_epoch=50)
    with pytest.warns(UserWarning, match="fast_dev_run prunes this module too"):
        module = fit(callback, fast_dev_run=batches)
    assert module.trainer.global_step == 2 * int(batches)
    assert module.max_epochs[1:] == [1, 1]
    assert callback.pruner.steps.steps_per_epoch == int(batches)
    assert non_zeros(module) == KEPT
    assert non_zeros(fit(callback, module=Net(), limit_train_batches=1)) == KEPT
    assert callback.pruner.steps.epochs == 2  # of the real fit


# --- checkpoints --------------------------------------------------------------------------------


def test_every_checkpoint_continues_to_the_same_network(tmp_path):
    module = fit(pruning(), checkpoints(tmp_path), enable_checkpointing=True)
    files = written(tmp_path)
    assert len(files) == 5
    dense = set(Net().state_dict())
    for epoch, file in enumerate(files):
        state = torch.load(file, weights_only=True)["state_dict"]
        others = set(state) - dense
        assert dense <= set(state) and all(".pruner_masks." in name for name in others)
        resumed = fit(pruning(), resume=file)
        assert same(resumed, module)
        if epoch < 2:  # the masks of the prune phase are not final: no plain module takes them
            with pytest.raises(RuntimeError, match="pruner_masks"):
                Net.load_from_checkpoint(file)
        else:
            assert not others
            assert non_zeros(Net.load_from_checkpoint(file)) == KEPT


def test_checkpoints_within_an_epoch_continue_to_the_same_network(tmp_path):
    """Lightning gives a resumed epoch other batches, so that here all batches are equal."""
    batch = torch.utils.data.Subset(lightning_modules.task(), range(16))
    loader = DataLoader(ConcatDataset([batch] * 6), 16)

    def run(*callbacks, resume=None):
        module = Net()
        lightning_modules.trainer(*callbacks, enable_checkpointing=True).fit(
            module, loader, ckpt_path=resume
        )
        return module

    module = run(pruning(), checkpoints(tmp_path, every_n_train_steps=4))
    for file in written(tmp_path):  # step 12 is the last of the prune phase
        assert same(run(pruning(), checkpoints(tmp_path / "other"), resume=file), module), file.name


def test_the_best_checkpoint_is_one_of_fine_tuning(tmp_path):
    """The network of the prune phase is better as long as it keeps more weights."""
    best = ModelCheckpoint(dirpath=tmp_path, monitor="loss", mode="max")
    module = fit(pruning(), best, enable_checkpointing=True)
    assert "epoch=2-" in best.best_model_path and best.best_model_score < math.inf
    loader = DataLoader(lightning_modules.task(), 96)
    module.trainer.validate(module, loader, ckpt_path="best", verbose=False)
    assert non_zeros(module) == KEPT


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    def saved(*callbacks):
        module = fit(*callbacks)
        module.trainer.save_checkpoint(tmp_path / "saved.ckpt")
        return tmp_path / "saved.ckpt"

    with pytest.raises(ValueError, match="written without PruningCallback"):
        fit(pruning(), resume=saved())
    with pytest.raises(ValueError, match="after finalize"):
        fit(pruning(), resume=saved(pruning()))
    fit(pruning(), checkpoints(tmp_path), enable_checkpointing=True)
    for file in (path for path in tmp_path.glob("epoch*.ckpt")):
        with pytest.raises(ValueError, match=r"keeps 0\.1 .* this one keeps 0\.2"):
            fit(pruning(lambda module: HarpPruner(module, 0.2)), resume=file)


# --- beside other callbacks ---------------------------------------------------------------------


AVERAGES = {
    "EMA": lambda: EMAWeightAveraging(decay=0.8),
    "equal weights": WeightAveraging,
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=3),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_of_weights_end_with_the_budget(tmp_path, kind):
    module = fit(pruning(), AVERAGES[kind](), checkpoints(tmp_path), enable_checkpointing=True)
    assert non_zeros(module) == KEPT
    assert not same(module, fit(pruning()))  # the average, not the last weights
    module.trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert non_zeros(Net.load_from_checkpoint(tmp_path / "after.ckpt")) == KEPT
    for file in sorted(tmp_path.glob("epoch=[123]*.ckpt")):
        assert same(fit(pruning(), AVERAGES[kind](), resume=file), module)
    if kind != "SWA":  # whose checkpoints have the present weights, not the averages
        saved = torch.load(tmp_path / "epoch=4-step=30.ckpt", weights_only=True)["state_dict"]
        average = Net()
        average.load_state_dict(dense_state_dict(saved))
        assert same(average, module)


@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_before_the_callback_are_refused(kind):
    with pytest.raises(ValueError, match="copies the network.*put PruningCallback before it"):
        fit(AVERAGES[kind](), pruning())


def test_an_early_stop_waits_for_fine_tuning():
    """Nothing improves by 100: the stop comes one epoch after the first of fine-tuning."""
    stop = EarlyStopping("loss", patience=1, min_delta=100)
    module = fit(pruning(epochs={"prune": 3, "finetune": 4}), stop, max_epochs=7)
    assert (stop.stopped_epoch, module.trainer.current_epoch) == (4, 5)
    assert non_zeros(module) == KEPT


# --- two processes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(lightning_ranks.__file__)
    paths = [str(script.parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("run", ["ddp", "ddp_find_unused_parameters_true", "resumed"])
def test_two_processes_end_with_the_network_of_one(ranks, run):
    states = [rank[run] for rank in ranks]
    _, alone = lightning_ranks.run()
    for name, expected in alone.items():
        assert torch.equal(states[0][name], states[1][name]), name
        assert torch.equal(states[0][name] != 0, expected != 0), name
        torch.testing.assert_close(states[0][name], expected, rtol=1e-6, atol=1e-9)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: PruningCallback(harp(Net()), epochs=EPOCHS), TypeError, "lambda module"),
        (lambda: PruningCallback(harp), TypeError, "got no epochs"),
        (lambda: pruning(epoch=3), TypeError, "here it is epochs="),
        (lambda: pruning().pruner, ValueError, "when trainer.fit begins"),
        (lambda: fit(pruning(lambda module: None)), ValueError, "returned a NoneType"),
        (lambda: fit(pruning(lambda _: harp(network()))), ValueError, "not attached to the Light"),
        (lambda: fit(pruning(epochs=5)), TypeError, "give a dict"),
        (lambda: fit(pruning(epochs={"finetune": 5})), ValueError, "without 'prune'"),
        (lambda: fit(pruning(), max_epochs=4), ValueError, r"Trainer\(max_epochs=5\)"),
        (lambda: fit(pruning(), max_steps=29), ValueError, "take 30 optimizer steps"),
    ],
)
def test_refusals(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize("epochs", [9, -1, None])
def test_fit_ends_after_the_last_phase(epochs):
    module = fit(pruning(), max_epochs=epochs, limit_train_batches=2, limit_val_batches=0)
    assert module.trainer.current_epoch == 5 and non_zeros(module) == KEPT


def test_a_callback_prunes_a_network_once():
    callback = pruning()
    module = fit(callback)
    with pytest.raises(ValueError, match="has pruned the network already"):
        fit(callback, module=module)
    assert non_zeros(fit(callback, module=Net())) == KEPT


def test_strategies_that_shard_weights_are_refused():
    callback = pruning()
    trainer = lightning_modules.trainer(callback)
    trainer.strategy.__class__ = FSDPStrategy  # a trainer with it cannot be made on a CPU
    with pytest.raises(ValueError, match="FSDPStrategy.*legal: a single device, or 'ddp'"):
        callback.setup(trainer, Net(), "fit")


def test_the_older_package_is_refused():
    """pip install lightning brings pytorch_lightning, whose classes are others."""
    older = pytest.importorskip("pytorch_lightning")
    with pytest.raises(TypeError, match="is of pytorch_lightning; import Trainer"):
        pruning().setup(older.Trainer(accelerator="cpu", logger=False), Net(), "fit")


def test_other_stages_attach_nothing(tmp_path):
    module = Net()
    trainer = lightning_modules.trainer(pruning())
    trainer.validate(module, DataLoader(lightning_modules.task(), 96), verbose=False)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    assert same(Net.load_from_checkpoint(tmp_path / "dense.ckpt"), Net())
    assert same(module, Net())
