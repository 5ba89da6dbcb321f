"""The whole job as one loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learned_steps import DENSITY, batch_of, network, sizes, step_by
from pattern_networks import small
from phase_steps import OPTIMIZERS, MakeOptimizer, attach, loss_of, states_equal
from torch import nn
from torch.nn import functional as F

from robust_plugin import GradualPruner, HarpPruner, HydraPruner, MagnitudePruner, Pruner
from robust_plugin.masks.select import kept_count
from robust_plugin.pruning.phase_run import take_over_state


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize("kind", [MagnitudePruner, HydraPruner, HarpPruner])
def test_each_phase_gets_its_optimizer_and_the_end_is_plain(kind: type[Pruner]) -> None:
    model = network()
    pruner = kind(model, DENSITY)
    epochs = {"prune": 2, "finetune": 1} if pruner.learn else {"finetune": 1}
    seen = []

    def make(groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = sgd(groups)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    wrapped: list[nn.Module] = []

    def wrap(inner: nn.Module) -> nn.Module:
        wrapped.append(nn.DataParallel(inner))
        return wrapped[-1]

    for phase in pruner.phases(make, epochs=epochs, steps_per_epoch=2, wrap=wrap):
        assert phase.model is wrapped[-1] and pruner.phase == phase.name
        for epoch in phase:
            for step in range(2):
                x, y = batch_of(2 * epoch + step)
                step_by(F.cross_entropy(phase.model(x), y), phase.optimizer)
            phase.scheduler.step()
            seen.append((phase.name, epoch))
    assert seen == [(name, epoch) for name, n in epochs.items() for epoch in range(n)]
    assert len(wrapped) == len(epochs)
    assert pruner.phase == "finalized"
    weights = [p for p in model.parameters() if p.dim() >= 2]
    due = sum(kept_count(n, DENSITY) for n in sizes(network()))
    assert sum(int(w.count_nonzero()) for w in weights) == due
    network().load_state_dict(model.state_dict())


def test_optimizers_by_phase() -> None:
    pruner = HydraPruner(network(), DENSITY)
    makes = {"prune": sgd, "finetune": lambda groups: torch.optim.Adam(groups, lr=0.01)}
    kinds = []
    for phase in pruner.phases(makes, epochs={"prune": 1, "finetune": 1}, steps_per_epoch=1):
        kinds.append(type(phase.optimizer))
        step_by(F.cross_entropy(pruner.model(batch_of(0)[0]), batch_of(0)[1]), phase.optimizer)
    assert kinds == [torch.optim.SGD, torch.optim.Adam]


def test_a_phase_that_made_no_step_raises() -> None:
    pruner = HydraPruner(network(), DENSITY)
    with pytest.raises(ValueError, match="learned nothing in its prune phase"):
        for _ in pruner.phases(sgd, epochs={"prune": 1, "finetune": 1}, steps_per_epoch=1):
            pass
    assert pruner.phase == "prune"


@pytest.mark.parametrize(
    ("epochs", "says"),
    [
        ({"finetune": 3}, "without 'prune', in which HydraPruner learns"),
        ({"prune": 0}, "whole numbers above 0, for 'prune' and 'finetune'"),
        ({"prune": 2.5}, "whole numbers above 0"),
        ({"prune": 1, "shrink": 3}, "legal: whole numbers above 0, for 'prune' and 'finetune'"),
    ],
)
def test_illegal_lengths(epochs: dict[str, int], says: str) -> None:
    pruner = HydraPruner(network(), DENSITY)
    with pytest.raises(ValueError, match=says):
        next(pruner.phases(sgd, epochs=epochs, steps_per_epoch=1))
    assert pruner.phase == "attached"


def test_other_mistakes() -> None:
    pruner = MagnitudePruner(network(), DENSITY)
    with pytest.raises(TypeError, match="epochs is 5; give a dict"):
        next(pruner.phases(sgd, epochs=5, steps_per_epoch=1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="legal: whole numbers above 0, for 'finetune'"):
        next(pruner.phases(sgd, epochs={"prune": 1, "finetune": 1}, steps_per_epoch=1))
    ready = torch.optim.SGD(pruner.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="make_optimizer is a SGD; each phase trains other"):
        next(pruner.phases(ready, epochs={"finetune": 1}, steps_per_epoch=1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wrap is 3; give a function of the network"):
        next(pruner.phases(sgd, epochs={"finetune": 1}, steps_per_epoch=1, wrap=3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make_optimizer has no function for 'finetune'"):
        next(pruner.phases({"prune": sgd}, epochs={"finetune": 1}, steps_per_epoch=1))


# --- with a shrink phase ------------------------------------------------------------------------

STEPS = 3  # per epoch
EPOCHS = {"shrink": 2, "finetune": 2}


def train(pruner: Pruner, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(pruner, step).backward()
        optimizer.step()


def uninterrupted(make: MakeOptimizer) -> Pruner:
    """One optimizer from the first step to the last."""
    pruner = attach("magnitude", small(), 0.1)
    optimizer = make(pruner.set_phase("shrink"))
    pruner.follow(optimizer, epochs=2, steps_per_epoch=STEPS)
    train(pruner, optimizer, 0, 6)
    pruner.set_phase("finetune")
    train(pruner, optimizer, 6, 6)
    pruner.finalize()
    return pruner


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("given", ["a function", "a function per phase", "one function of shrink"])
def test_momentum_survives_from_shrink_to_finetune(optimizer: str, given: str) -> None:
    make = OPTIMIZERS[optimizer]
    makers: Any = {
        "a function": make,
        "a function per phase": {"shrink": make, "finetune": make},
        "one function of shrink": {"shrink": make},
    }[given]
    pruner, made = attach("magnitude", small(), 0.1), []
    for phase in pruner.phases(makers, epochs=EPOCHS, steps_per_epoch=STEPS):
        made.append(phase.optimizer)
        for epoch in phase:
            first = STEPS * (epoch + 2 * (phase.name == "finetune"))
            train(pruner, phase.optimizer, first, STEPS)
    assert (made[0] is made[1]) == (given == "one function of shrink")
    wanted = uninterrupted(make)
    assert states_equal(pruner.model.state_dict(), wanted.model.state_dict())
    # A new optimizer without the state of the former one gives another network.
    anew = attach("magnitude", small(), 0.1)
    first = make(anew.set_phase("shrink"))
    anew.follow(first, epochs=2, steps_per_epoch=STEPS)
    train(anew, first, 0, 6)
    train(anew, make(anew.set_phase("finetune")), 6, 6)
    anew.finalize()
    assert not states_equal(anew.model.state_dict(), wanted.model.state_dict())


def test_a_scheduler_stays_with_an_optimizer_that_stays() -> None:
    def make(groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = OPTIMIZERS["sgd"](groups)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    pruner = attach("magnitude", small(), 0.1)
    runs = []
    for phase in pruner.phases({"shrink": make}, epochs=EPOCHS, steps_per_epoch=STEPS):
        runs.append((phase.optimizer, phase.scheduler))
        for _ in phase:
            train(pruner, phase.optimizer, 0, STEPS)
    assert runs[0] == runs[1] and pruner.progress.finetune_steps == 2 * STEPS


def test_after_a_prune_phase_optimizers_begin_anew() -> None:
    """The prune phase trains other parameters, and the weights are frozen in it."""
    pruner = GradualPruner(small(), 0.1)
    epochs = {"shrink": 2, "prune": 1, "finetune": 1}
    states = {}
    for phase in pruner.phases(OPTIMIZERS["sgd"], epochs=epochs, steps_per_epoch=STEPS):
        states[phase.name] = len(phase.optimizer.state)
        for _ in phase:
            train(pruner, phase.optimizer, 0, STEPS)
    assert states == {"shrink": 0, "prune": 0, "finetune": 0} and pruner.phase == "finalized"
    with pytest.raises(ValueError, match="make_optimizer has no function for 'prune'"):
        makers = {"shrink": sgd, "finetune": sgd}
        next(GradualPruner(small(), 0.1).phases(makers, epochs=epochs, steps_per_epoch=1))


class Wrapper:
    """An optimizer inside of another object, as accelerate and SAM have it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


def test_states_are_taken_over_by_parameter() -> None:
    first, last = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

    def stepped(*parameters: nn.Parameter) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        for parameter in parameters:
            parameter.grad = torch.rand_like(parameter)
        optimizer.step()
        return optimizer

    former = stepped(first, last)
    for given, taken in (
        (torch.optim.Adam([last, first]), [first, last]),  # in another order
        (torch.optim.Adam([last]), [last]),
        (Wrapper(torch.optim.Adam([{"params": [first]}, {"params": [last]}])), [first, last]),
        (torch.optim.AdamW([first, last]), []),  # another class has other states
        ([torch.optim.Adam([first]), torch.optim.Adam([last])], []),
    ):
        take_over_state(former, given)
        inner = given.optimizer if isinstance(given, Wrapper) else given
        states = inner.state if isinstance(inner, torch.optim.Optimizer) else {}
        assert set(states) == set(taken)
        assert all(states[p]["exp_avg"] is former.state[p]["exp_avg"] for p in taken)
    pair = [torch.optim.Adam([first]), torch.optim.Adam([last])]
    take_over_state([stepped(first), Wrapper(stepped(last))], pair)
    assert [set(each.state) for each in pair] == [{first}, {last}]


@pytest.mark.parametrize("saved_at", ["the end of shrink", "the start of finetune"])
@pytest.mark.parametrize("epochs", [EPOCHS, {"shrink": 2}])
def test_a_state_of_after_shrinking_goes_on_with_the_next_phase(
    saved_at: str, epochs: dict[str, int]
) -> None:
    pruner = attach("magnitude", small(), 0.1)
    optimizer = OPTIMIZERS["sgd"](pruner.set_phase("shrink"))
    pruner.follow(optimizer, epochs=2, steps_per_epoch=STEPS)
    train(pruner, optimizer, 0, 6)
    assert pruner.phase_done == ("shrink", 6)
    if saved_at == "the start of finetune":
        pruner.set_phase("finetune")
        assert pruner.phase_done == ("finetune", 0)
    resumed = attach("magnitude", small(1), 0.1)
    resumed.model.load_state_dict(pruner.model.state_dict())
    left = []
    for phase in resumed.phases(OPTIMIZERS["sgd"], epochs=epochs, steps_per_epoch=STEPS):
        left += [(phase.name, epoch) for epoch in phase]
        train(resumed, phase.optimizer, 6, STEPS * len(list(phase)))
    assert left == [("finetune", 0), ("finetune", 1)] * ("finetune" in epochs)
    assert resumed.kept == resumed.budget.total and resumed.phase == "finalized"


@pytest.mark.parametrize(
    ("kind", "epochs", "says"),
    [
        ("magnitude", {"finetune": 3}, "without 'shrink', in which the density of MagnitudePruner"),
        ("gradual", {"prune": 1}, "without 'shrink', in which the density of GradualPruner falls"),
        ("gradual", {"shrink": 1}, "without 'prune', in which GradualPruner learns"),
        ("gradual", {"shrink": 0, "prune": 1}, "for 'shrink' and 'prune' and 'finetune'"),
        ("magnitude", {"shrink": 1, "prune": 1}, "legal: whole numbers above 0, for 'shrink' and"),
    ],
)
def test_illegal_lengths_of_a_pruner_with_a_schedule(
    kind: str, epochs: dict[str, int], says: str
) -> None:
    pruner = attach(kind, small(), 0.1)
    with pytest.raises(ValueError, match=says):
        next(pruner.phases(sgd, epochs=epochs, steps_per_epoch=1))
    assert pruner.phase == "attached"
