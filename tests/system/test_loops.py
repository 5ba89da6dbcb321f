"""The pruner in training loops of many styles, from the first step to the plain network.

``tests/system/loops`` holds each loop twice: as it was, and with the pruner for the whole job. The
loops are written after the pattern of public training scripts.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from loop_runs import (
    DENSITY,
    LOOPS,
    NAMES,
    Killed,
    Points,
    accuracy,
    due,
    examples,
    imported,
    kept,
    load,
    network,
    run,
    run_in_two_processes,
    source,
)
from loop_variants import with_gradual, with_gradual_magnitude, with_magnitude, with_torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from robust_plugin import HydraPruner

IN_ONE_PROCESS = [
    pytest.param(name, marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="no Muon"))
    if name == "two_optimizers"
    else name
    for name in NAMES
    if name != "ddp"
]
EPOCH = len(Points())  # reads of one epoch
PRUNE_EPOCHS = 3


@functools.cache
def trained() -> nn.Module:
    """A dense network, trained by the plainest of the loops."""
    return run("best_state", load("best_state_before"), network(), Path())[0]


def dense() -> nn.Module:
    return copy.deepcopy(trained())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() >= 2}


def by_magnitude() -> dict[str, Tensor]:
    """Which weights of the dense network are the largest of their layers."""
    found = {}
    for name, w in weights(trained()).items():
        least = w.abs().flatten().sort(descending=True).values
        found[name] = w.abs() >= least[max(1, w.numel() - int((1 - DENSITY) * w.numel())) - 1]
    return found


def check_pruned(networks: list[nn.Module]) -> list[nn.Module]:
    """Check what a loop gives: plain names, exactly the budget, accuracy. Return plain copies."""
    plain = []
    for trained in networks:
        fresh = network()
        fresh.load_state_dict(trained.state_dict(), strict=True)
        assert kept(fresh) == due(fresh)
        assert accuracy(fresh) > 0.9
        plain.append(fresh)
    for name, w in weights(plain[0]).items():  # an average has the same zeros
        assert all(torch.equal(w != 0, weights(other)[name] != 0) for other in plain[1:])
    return plain


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_the_whole_job(name: str, tmp_path: Path) -> None:
    assert accuracy(network()) < 0.3
    before = run(name, load(f"{name}_before"), network(), tmp_path)
    assert all(accuracy(model) > 0.9 for model in before)

    after = check_pruned(run(name, load(f"{name}_after"), dense(), tmp_path))
    # Other weights are kept than the largest ones: something was learned.
    largest = by_magnitude()
    moved = sum(int(((w != 0) & ~largest[n]).sum()) for n, w in weights(after[0]).items())
    assert moved > 0.01 * due(network())


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_the_whole_job_by_magnitude(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(with_magnitude(name))
    after = check_pruned(run(name, imported(file), dense(), tmp_path))
    for n, largest in by_magnitude().items():
        assert torch.equal(weights(after[0])[n] != 0, largest)


GRADUAL = {"gradual": with_gradual, "gradual magnitude": with_gradual_magnitude}


@pytest.mark.parametrize("kind", GRADUAL)
@pytest.mark.parametrize("name", IN_ONE_PROCESS)
@pytest.mark.filterwarnings("ignore:the shrink phase ends at step")  # where a best state is loaded
def test_the_whole_job_with_a_shrink_phase(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(GRADUAL[kind](name))
    after = check_pruned(run(name, imported(file), dense(), tmp_path))
    # The weights have trained before they were pruned: others are kept than the largest at first. A
    # loop that loads its best state goes back to the first epoch, from which the rest is cut.
    largest = by_magnitude()
    moved = sum(int(((w != 0) & ~largest[n]).sum()) for n, w in weights(after[0]).items())
    assert moved > (0.01 * due(network()) if kind == "gradual" else 0)


@pytest.mark.parametrize("when", [1.5, 3.0, 5.5, 6.5])  # epochs: 3 shrink, 3 prune, 4 fine-tune
@pytest.mark.parametrize("kind", GRADUAL)
@pytest.mark.parametrize("name", ["adjust_rate", "timm_style"])
def test_a_loops_own_checkpoint_of_a_shrinking_pruner_continues_to_the_bit(
    name: str, kind: str, when: float, tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(GRADUAL[kind](name))
    loop = imported(file)
    whole = check_pruned(run(name, loop, dense(), tmp_path))
    with pytest.raises(Killed):
        run(name, loop, dense(), tmp_path, data=Points(int(when * EPOCH)))
    again = check_pruned(run(name, loop, network(), tmp_path, resume=True))
    for first, second in zip(whole, again, strict=True):
        pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_whole_job_in_two_processes(tmp_path: Path) -> None:
    magnitude, other = tmp_path / "magnitude.py", tmp_path / "torch_prune.py"
    gradual = tmp_path / "gradual.py"
    gradual.write_text(with_gradual("ddp"))
    magnitude.write_text(with_magnitude("ddp"))
    other.write_text(with_torch("ddp"))  # for the table of docs/frameworks.md
    run_in_two_processes([LOOPS / "ddp_after.py", gradual, magnitude, other], dense(), tmp_path)
    state = torch.load(tmp_path / "torch_prune/rank0.pt", weights_only=True)
    network().load_state_dict(state, strict=True)
    for name in ("ddp_after", "gradual", "magnitude"):
        states = [torch.load(tmp_path / name / f"rank{rank}.pt") for rank in range(2)]
        ranks = [network(), network()]
        for model, state in zip(ranks, states, strict=True):
            model.load_state_dict(state, strict=True)
        check_pruned(ranks)
        pairs = zip(ranks[0].parameters(), ranks[1].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "name", ["accelerated", "adjust_rate", "amp_ema", "best_state", "pgd_switch", "sam", "swa"]
)
def test_the_prune_phase_leaves_the_weights_alone(name: str, tmp_path: Path) -> None:
    """Also where the loop's optimizer holds all parameters, or the loop decays them."""
    norms = {"features.1", "features.4"}  # these are trained beside the scores
    model, first_of_finetune = dense(), PRUNE_EPOCHS * EPOCH
    with pytest.raises(Killed):
        run(name, load(f"{name}_after"), model, tmp_path, data=Points(first_of_finetune))
    for n, w in trained().named_parameters():
        now = dict(model.named_parameters())[n]
        if n.rpartition(".")[0] not in norms:
            assert torch.equal(now[now != 0], w[now != 0])


def test_the_best_state_of_an_early_epoch_meets_the_budget(tmp_path: Path) -> None:
    """The first state is loaded after each phase; in the prune phase it keeps too much."""
    file = tmp_path / "best_state.py"
    file.write_text(source("best_state_after").replace("density=0.1", "density=0.03"))
    x, _ = examples()
    never_right = TensorDataset(x, torch.full((len(x),), -1))  # the first state remains the best
    with pytest.warns(UserWarning, match="the rates ended at .*, the budget is 0.03, at step 8 of"):
        model = imported(file).train(dense(), Points(), never_right)
    fresh = network()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert kept(fresh) == sum(
        max(1, p.numel() - int((1 - 0.03) * p.numel())) for p in weights(fresh).values()
    )


@pytest.mark.parametrize("when", [1.5, 3.0, 5.5])  # epochs: 3 to prune, 4 to fine-tune
@pytest.mark.parametrize("name", ["adjust_rate", "timm_style"])
def test_a_loops_own_checkpoint_continues_to_the_bit(
    name: str, when: float, tmp_path: Path
) -> None:
    loop = load(f"{name}_after")
    whole = check_pruned(run(name, loop, dense(), tmp_path))
    with pytest.raises(Killed):
        run(name, loop, dense(), tmp_path, data=Points(int(when * EPOCH)))
    again = check_pruned(run(name, loop, network(), tmp_path, resume=True))
    for first, second in zip(whole, again, strict=True):
        pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["adjust_rate", "timm_style"])
def test_a_checkpoint_by_magnitude_continues_to_the_bit(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(with_magnitude(name))
    loop = imported(file)
    whole = check_pruned(run(name, loop, dense(), tmp_path))
    with pytest.raises(Killed):
        run(name, loop, dense(), tmp_path, data=Points(int(2.5 * EPOCH)))
    again = check_pruned(run(name, loop, network(), tmp_path, resume=True))
    for first, second in zip(whole, again, strict=True):
        pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_adversarial_weight_perturbation_acts_in_both_phases() -> None:
    model = dense()
    pruner = HydraPruner(model, density=DENSITY)
    awp = load("awp_after").WeightPerturbation(model, gamma=0.05)
    x, y = examples()
    for phase in pruner.phases(
        lambda params: torch.optim.SGD(params, lr=0.01),
        epochs={"prune": 1, "finetune": 1},
        steps_per_epoch=1,
    ):
        model.train()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        loss = F.cross_entropy(model(x), y)
        difference = awp.difference(x, y)
        assert set(difference) == set(weights(network()))
        assert all(moved.abs().max() > 0 for moved in difference.values())
        awp.shift(difference, 1)
        worse = F.cross_entropy(model(x), y)
        assert worse > loss + 0.01
        worse.backward()
        phase.optimizer.step()
        awp.shift(difference, -1)
        held = weights(network()) if phase.name == "prune" else {}
        now = dict(model.named_parameters())
        assert all(torch.allclose(now[name], before[name], atol=1e-6) for name in held)
        phase.optimizer.zero_grad()
    assert kept(model) == due(network())
