"""Masks that follow an optimizer: after each of its steps, whatever the training loop does.

The runs of ten learned steps are compared with a plain loop. Where a feature leaves the arithmetic
alone the comparison is in float32; where it reorders sums (fused kernels) it is in float64: scores
are float32 whatever the model's dtype, so that the last bits of the sums do not reach them. Either
way the masks are equal, not close.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from learned_steps import (
    LR,
    STEPS,
    THREAT,
    Trace,
    adam,
    assert_same,
    attach_learned,
    batch_of,
    follow,
    learn,
    network,
    sgd,
)
from torch import Tensor, nn
from torch.nn import functional as F
from unchanged import check_unchanged, snapshot

from robust_plugin import HarpPruner, HydraPruner, Pruner, pgd
from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.pruning.optimizer_hook import (
    check_holds,
    innermost_optimizers,
    step_was_skipped,
)
from robust_plugin.runtime.distributed import check_ranks

LEARNED = pytest.mark.parametrize("kind", ["hydra", "held"])


def test_optimizer_must_hold_every_trained_parameter(cnn):
    model = cnn()
    check_holds([torch.optim.SGD(model.parameters(), lr=0.1)], model)
    with pytest.raises(ValueError, match="lacks 7 parameters of this phase, such as '0.bias'"):
        check_holds([torch.optim.SGD([model[0].weight], lr=0.1)], model)
    model.requires_grad_(False)
    check_holds([torch.optim.SGD([model[0].weight], lr=0.1)], model)
    for wrong in (None, model, model[0].weight):
        with pytest.raises(TypeError, match=f"optimizer is a {type(wrong).__name__}"):
            innermost_optimizers(wrong)


def test_skipped_steps_of_fused_optimizers(cnn):
    optimizer = torch.optim.SGD(cnn().parameters(), lr=0.1)
    assert not step_was_skipped(optimizer)
    for found, skipped in [
        (torch.tensor([1.0]), True),
        (torch.tensor([0.0]), False),
        (None, False),
    ]:
        optimizer.found_inf = found
        assert step_was_skipped(optimizer) == skipped


def test_one_process_has_nothing_to_compare(cnn):
    check_ranks(cnn())


def test_a_skipped_step_moves_nothing(cnn, batch):
    model = cnn()
    pruner = HydraPruner(model, density=0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0, fused=True)
    pruner.follow(optimizer)
    torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    scores = [mask.scores.detach().clone() for mask in pruner.masks]
    for skipped in (True, False):
        optimizer.found_inf = torch.tensor([float(skipped)])
        optimizer.step()
        assert pruner.steps.step == int(not skipped)
        same = [torch.equal(s, m.scores) for s, m in zip(scores, pruner.masks, strict=True)]
        assert all(same) if skipped else not any(same)


def test_masks_follow_the_optimizer(cnn, batch):
    model = cnn()
    pruner = HydraPruner(model, 0.1)
    optimizer = torch.optim.Adam(pruner.set_phase("prune"), lr=0.05)
    pruner.follow(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        for mask in pruner.masks:
            best = mask.scores.detach().abs().flatten().sort(descending=True).indices
            wanted = set(best[: int(mask.kept)].tolist())
            assert set(mask.mask.flatten().nonzero().flatten().tolist()) == wanted
    other = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(other)  # the first is followed no more
    steps = pruner.steps.step
    optimizer.step()
    assert pruner.steps.step == steps
    other.step()
    assert pruner.steps.step == steps + 1


def test_a_learned_phase_that_nothing_follows(cnn, batch, attach):
    for kind in ("hydra", "rates", "held", "hinge"):
        model = cnn()
        pruner = attach(kind, model, 0.1)
        parameters = pruner.set_phase("prune")
        with pytest.raises(ValueError, match="call pruner.follow"):
            model(batch[0])
        with torch.no_grad():
            model(batch[0])  # nothing would be learned here
        pruner.follow(torch.optim.SGD(parameters, lr=0.1), epochs=1, steps_per_epoch=1)
        model(batch[0])


def test_follow_checks_optimizer_phase_and_length(cnn, attach):
    model = cnn()
    pruner = attach("held", model, 0.1)
    lengths = {"epochs": 1, "steps_per_epoch": 2}
    with pytest.raises(ValueError, match="the phase is 'attached'; call set_phase"):
        pruner.follow(torch.optim.SGD(model.parameters(), lr=0.1), **lengths)
    groups = pruner.set_phase("prune")
    before = snapshot(model)
    for missing in range(2):
        some = [group for i, group in enumerate(groups) if i != missing]
        with pytest.raises(ValueError, match="the optimizer lacks [26] parameters of this phase"):
            pruner.follow(torch.optim.SGD(some, lr=0.1), **lengths)
    with pytest.raises(TypeError, match="optimizer is a dict"):
        pruner.follow(groups, **lengths)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for bad in ({}, {"epochs": 3}, {"steps_per_epoch": 3}, {"epochs": 0, "steps_per_epoch": 3}):
        with pytest.raises(ValueError, match="epochs is .* and steps_per_epoch is"):
            pruner.follow(optimizer, **bad)
    check_unchanged(model, before)
    pruner.follow(optimizer, **lengths)
    pruner.update_masks()
    pruner.set_phase("finetune")
    with pytest.raises(ValueError, match="the phase is 'finetune'"):
        pruner.follow(optimizer, **lengths)


def test_an_optimizer_of_the_prune_phase_is_refused_in_the_next(cnn, batch):
    model, (x, y) = cnn(), batch
    pruner = HydraPruner(model, 0.2)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)

    def step(optimizer):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step(optimizer)
    groups = pruner.set_phase("finetune")
    with pytest.raises(ValueError, match="the optimizer lacks .* build it from what set_phase"):
        step(optimizer)
    step(torch.optim.SGD(groups, lr=0.1))
    for group in groups:
        optimizer.add_param_group({"params": [p for p in group["params"] if p.dim() != 1]})
    with pytest.raises(ValueError, match="lacks"):  # still without the biases
        step(optimizer)


def test_decaying_rates_warns(cnn):
    pruner = HarpPruner(cnn(), 0.2)
    groups = pruner.set_phase("prune")
    with pytest.warns(UserWarning, match="decays the rates by 0.01") as said:
        optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.1, weight_decay=0.01)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=1)
    assert said[0].filename == __file__  # the line of the user's loop
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
        pruner.follow(optimizer, epochs=1, steps_per_epoch=1)


def test_early_end_of_a_held_phase_warns_and_still_meets_the_budget(cnn, batch, attach):
    pruner = attach("held", cnn(), 0.01)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=10, steps_per_epoch=10)
    F.cross_entropy(pruner.model(batch[0]), batch[1]).backward()
    optimizer.step()
    with pytest.warns(
        UserWarning, match="budget .*0.01, at step 1 of 100; the rest is cut at once"
    ) as said:
        pruner.set_phase("finetune")
    assert said[0].filename == __file__
    assert pruner.kept == pruner.budget.total
    full = attach("held", cnn(), 0.01)
    optimizer = torch.optim.SGD(full.set_phase("prune"), lr=0.1)
    full.follow(optimizer, epochs=1, steps_per_epoch=1)
    F.cross_entropy(full.model(batch[0]), batch[1]).backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full.set_phase("finetune")


@LEARNED
def test_the_plain_run_learns(kind: str) -> None:
    # What the others are compared with is no standstill.
    trace = learn(kind)
    assert min(trace.flips) > 0
    assert sum(trace.flips) > 0.25 * trace.pruner.kept


def test_the_plain_run_follows_the_equations() -> None:
    """HYDRA without parametrizations, hooks or autograd through a mask."""
    trace = learn("hydra")
    model = network()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() >= 2}
    scores = {name: math.sqrt(6 / w[0].numel()) * w / w.abs().max() for name, w in weights.items()}
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    speed = {name: torch.zeros_like(s) for name, s in scores.items()}
    kept = {name: max(1, w.numel() - int(0.95 * w.numel())) for name, w in weights.items()}

    def masks() -> dict[str, Tensor]:
        found = {}
        for name, s in scores.items():
            order = s.abs().flatten().argsort(descending=True, stable=True)[: kept[name]]
            found[name] = torch.zeros(s.numel()).index_fill_(0, order, 1.0).view(s.shape)
        return found

    def put_masked() -> None:
        for name, mask in masks().items():
            model.get_parameter(name).data.copy_(weights[name] * mask)

    weights = {name: w.clone() for name, w in weights.items()}
    optimizer = torch.optim.SGD(norms, lr=LR, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(7)
    for step in range(STEPS):
        put_masked()
        x, y = batch_of(step)
        loss = F.cross_entropy(model(pgd(THREAT, steps=2)(model, x, y)), y)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        for name, s in scores.items():
            grad = model.get_parameter(name).grad
            # dL/ds = sign(s) w dL/dw_eff, then SGD with momentum and without weight decay.
            speed[name] = 0.9 * speed[name] + s.sign() * (weights[name] * grad)
            s -= LR * speed[name]
        for ours, theirs in zip(trace.masks[step + 1], masks().values(), strict=True):
            assert torch.equal(ours, theirs.bool())


@LEARNED
def test_compiled_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()

    def wrap(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="aot_eager", fullgraph=True)

    # The attack runs on the compiled model too.
    assert_same(learn(kind, wrap=wrap), learn(kind))


@LEARNED
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_fused_optimizers(kind: str, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    plain = learn(kind, optimizer=optimizer, dtype=torch.float64)
    fused = learn(kind, optimizer=lambda groups: optimizer(groups, fused=True), dtype=torch.float64)
    assert min(plain.flips) > 0
    assert_same(fused, plain)


@LEARNED
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips(kind: str, fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []

    def update(step: int, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        scaler.scale(loss * (math.inf if step == 4 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())

    trace = learn(kind, optimizer=lambda groups: sgd(groups, fused), update=update, skipped=4)
    # Powers of two scale without rounding, so that even float32 is equal.
    assert scales == [1024.0] * 4 + [512.0] * 6
    assert trace.flips[4] == 0 and trace.flips[5] > 0
    plain = learn(kind, optimizer=lambda groups: sgd(groups, fused), skipped=4)
    assert_same(trace, plain)


@LEARNED
def test_accumulation_over_four_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(by_hand: bool) -> tuple[Trace, int]:
        model = network()
        pruner = attach_learned(kind, model)
        optimizer = sgd(pruner.set_phase("prune"))
        follow(pruner, optimizer)
        learned = [p for group in optimizer.param_groups for p in group["params"]]
        trace, calls = Trace(kind, pruner), 0
        trace.see(0)
        choose = GroupMask.choose

        def counted(self: GroupMask, kept: int | None = None) -> None:
            nonlocal calls
            calls += 1
            choose(self, kept)

        monkeypatch.setattr(GroupMask, "choose", counted)
        torch.manual_seed(7)
        for step in range(STEPS):
            sums: list[Tensor] | None = None
            optimizer.zero_grad()
            for micro in range(4):
                x, y = batch_of(4 * step + micro)
                x = pgd(THREAT, steps=2)(model, x, y)
                loss = (F.cross_entropy(model(x), y) + pruner.budget_penalty()) / 4
                if not by_hand:
                    loss.backward()
                    continue
                grads = torch.autograd.grad(loss, learned)
                sums = (
                    list(grads)
                    if sums is None
                    else [a + b for a, b in zip(sums, grads, strict=True)]
                )
            if sums is not None:
                for parameter, grad in zip(learned, sums, strict=True):
                    parameter.grad = grad
            optimizer.step()
            trace.see(step + 1)
        monkeypatch.undo()
        return trace, calls

    accumulated, calls = run(by_hand=False)
    assert calls == STEPS * len(accumulated.masks[0])
    assert min(accumulated.flips) > 0
    assert_same(accumulated, run(by_hand=True)[0])


def test_four_batches_accumulate_to_one_of_four_times_the_size() -> None:
    def run(micro: int) -> Trace:
        model = network(batch_norm=False, dtype=torch.float64)
        pruner = attach_learned("held", model)
        optimizer = sgd(pruner.set_phase("prune"))
        follow(pruner, optimizer)
        trace = Trace("held", pruner)
        attack = pgd(THREAT, steps=2, start="clean")
        for step in range(STEPS):
            x, y = batch_of(step, 32, torch.float64)
            optimizer.zero_grad()
            for xs, ys in zip(x.chunk(micro), y.chunk(micro), strict=True):
                (F.cross_entropy(model(attack(model, xs, ys)), ys) / micro).backward()
            optimizer.step()
            trace.see(step + 1)
        return trace

    assert_same(run(4), run(1))


@LEARNED
def test_scores_written_through_data(kind: str) -> None:
    slow: list[Tensor] = []

    def look_back(pruner: Pruner, step: int) -> None:
        # Lookahead: every third step the scores go back half of their way.
        if not slow:
            slow.extend(mask.scores.detach().clone() for mask in pruner.masks)
        if step % 3 == 2:
            for mask, old in zip(pruner.masks, slow, strict=True):
                mask.scores.data.lerp_(old, 0.5)
                old.copy_(mask.scores.data)

    # Each step's masks are checked against the scores that the step left.
    trace = learn(kind, between=look_back)
    assert min(trace.flips) > 0


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation in its usual shape: loops call first_step and second_step."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                if p.grad is not None:
                    p.add_(p.grad * group["rho"] / norm)

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base_optimizer.step()


class Hidden(torch.optim.Optimizer):
    """A wrapper that hides its optimizer, and whose own step is never called."""

    def __init__(self, params):
        super().__init__(params, {})
        self._own = torch.optim.SGD(self.param_groups, lr=0.1)

    def go(self):
        self._own.step()


class Wrapped:
    """A wrapper without hooks of its own, as accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self):
        self.optimizer.step()


@LEARNED
def test_masks_move_with_a_sharpness_aware_optimizer(cnn, batch, attach, kind):
    x, y = batch
    pruner = attach(kind, cnn(), 0.1)
    optimizer = Sam(pruner.set_phase("prune"), torch.optim.SGD, rho=2.0, lr=1.0)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=3)
    first = [mask.mask.clone() for mask in pruner.masks]
    perturbed = []
    for _ in range(3):
        F.cross_entropy(pruner.model(x), y).backward()
        optimizer.first_step()
        optimizer.zero_grad()
        F.cross_entropy(pruner.model(x), y).backward()  # with the masks of the perturbed scores
        perturbed.append([mask.mask.clone() for mask in pruner.masks])
        for mask in pruner.masks:
            count = int(mask.mask.sum())
            assert mask.scores.abs()[mask.mask].min() >= mask.scores.abs()[~mask.mask].max()
            assert count == mask.kept
        optimizer.second_step()
        optimizer.zero_grad()
    assert pruner.steps.step == 3 and pruner.kept == pruner.budget.total
    assert any(not torch.equal(a, m.mask) for a, m in zip(first, pruner.masks, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(perturbed[0], first, strict=True))
    pruner.set_phase("finetune")


def test_a_wrapper_that_hides_its_optimizer_is_noticed(cnn, batch, attach):
    for end in (lambda pruner: pruner.set_phase("finetune"), Pruner.finalize):
        pruner = attach("hydra", cnn(), 0.1)
        optimizer = Hidden(pruner.set_phase("prune"))
        pruner.follow(optimizer)
        F.cross_entropy(pruner.model(batch[0]), batch[1]).backward()
        optimizer.go()
        with pytest.raises(ValueError, match="the followed optimizer has made no step"):
            end(pruner)


def test_wrappers_and_several_optimizers_are_followed(cnn, batch, attach):
    x, y = batch
    pruner = attach("held", cnn(), 0.1)
    scores, norms = pruner.set_phase("prune")
    first, last = torch.optim.SGD([norms], lr=0.1), torch.optim.Adam([scores], lr=0.1)
    lengths = {"epochs": 1, "steps_per_epoch": 2}
    with pytest.raises(ValueError, match="the optimizer lacks 2 parameters"):
        pruner.follow([last], **lengths)
    pruner.follow([first, Wrapped(last)], **lengths)
    before = [mask.mask.clone() for mask in pruner.masks]
    F.cross_entropy(pruner.model(x), y).backward()
    first.step()
    assert pruner.steps.step == 0
    assert all(torch.equal(a, m.mask) for a, m in zip(before, pruner.masks, strict=True))
    last.step()
    assert pruner.steps.step == 1
    assert any(not torch.equal(a, m.mask) for a, m in zip(before, pruner.masks, strict=True))


def test_a_follow_that_fails_leaves_nothing_half_set(cnn, attach):
    pruner = attach("held", cnn(), 0.1)
    (scores, norms) = pruner.set_phase("prune")
    wrong = [
        (torch.optim.LBFGS([*scores["params"], *norms["params"]]), "LBFGS cannot be followed"),
        ([], "there are no optimizers to follow"),
        (torch.optim.SGD([scores], lr=0.1), "the optimizer lacks"),
    ]
    for optimizer, says in wrong:
        with pytest.raises(ValueError, match=says):
            pruner.follow(optimizer, epochs=2, steps_per_epoch=5)
        assert not pruner._state.following.active and pruner.steps.total == 0
        assert all(mask.unfollowed for mask in pruner.masks)
    for optimizer in (Wrapped(3), object(), "SGD"):
        with pytest.raises(TypeError, match=r"give a torch.optim.Optimizer, a wrapper"):
            pruner.follow(optimizer, epochs=2, steps_per_epoch=5)


@LEARNED
def test_a_loop_that_switches_everything_off_and_on_trains_what_the_phase_trains(
    cnn, batch, attach, kind
):
    """Around an attack, with an optimizer of all parameters; as one that leaves the flags alone."""
    x, y = batch

    def run(toggles: bool) -> dict[str, Tensor]:
        model = cnn()
        pruner = attach(kind, model, 0.1)
        for phase in ("prune", "finetune"):
            groups = pruner.set_phase(phase)
            given = model.parameters() if toggles else groups
            optimizer = torch.optim.SGD(given, lr=0.5, momentum=0.9)
            if phase == "prune":
                pruner.follow(optimizer, epochs=1, steps_per_epoch=3)
            for _ in range(3):
                if toggles:
                    model.eval().requires_grad_(False)
                    model(x)
                    model.train().requires_grad_(True)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        scores = [mask.scores.detach().clone() for mask in pruner.masks]
        pruner.finalize()
        return {**model.state_dict(), **{str(i): s for i, s in enumerate(scores)}}

    plain, toggled = run(False), run(True)
    assert all(torch.equal(plain[name], toggled[name]) for name in plain)


def test_the_first_group_holds_what_the_phase_is_about(cnn, attach):
    pruner = attach("held", cnn(), 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=3)
    held = optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for mask in pruner.masks for p in mask.parameters()}
