"""Running statistics measured anew: torch's own, closed forms, and networks that were just cut."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from robust_plugin import (
    HydraPruner,
    MagnitudePruner,
    ThreatModel,
    adversarial,
    gaussian,
    pgd,
    recompute_statistics,
    trades,
)

THREAT = ThreatModel("Linf", eps="8/255")


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def batches(count: int = 4, size: int = 12) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.rand(size, 1, 8, 8, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def statistics(model: nn.Module) -> list[Tensor]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found = [each for m in norms for each in (m.running_mean, m.running_var)]
    return [each.clone() for each in found if each is not None]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(first, second, strict=True)
    )


def test_batches_of_one_size_give_the_statistics_of_torch() -> None:
    ours, torchs = network(), network()
    assert recompute_statistics(ours, batches()) == 2
    update_bn([x for x, _ in batches()], torchs)
    assert same(statistics(ours), statistics(torchs))
    assert not same(statistics(ours), statistics(network()))


def test_batches_weigh_as_many_points_as_they_have() -> None:
    model = nn.BatchNorm1d(2)
    first, second = torch.randn(7, 2), 3 + torch.randn(2, 2)
    recompute_statistics(model, [first, second, torch.full((1, 2), 1e6)])  # the last is one point
    mean = (7 * first.mean(0) + 2 * second.mean(0)) / 9
    variance = (7 * first.var(0) + 2 * second.var(0)) / 9
    assert same(statistics(model), [mean, variance])


def test_a_layer_that_is_called_twice_averages_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            return self.norm(input=5 * x)

    model, x = Twice(), torch.randn(9, 3)
    recompute_statistics(model, [x])
    assert same(statistics(model), [3 * x.mean(0), 13 * x.var(0)])  # (1 + 5) / 2, (1 + 25) / 2


def test_dropout_is_off() -> None:
    with_dropout, without = network(dropout=0.5).train(), network()
    recompute_statistics(with_dropout, batches())
    recompute_statistics(without, batches())
    assert same(statistics(with_dropout), statistics(without))


def test_statistics_belong_to_the_masks_of_the_moment() -> None:
    model = network()
    recompute_statistics(model, batches())
    dense = statistics(model)
    MagnitudePruner(model, 0.1).finalize()
    recompute_statistics(model, batches())
    cut = statistics(model)
    pruned = network()
    MagnitudePruner(pruned, 0.1)  # masked, not finalized
    recompute_statistics(pruned, batches())
    assert same(statistics(pruned), cut) and not same(cut, dense)


def adversarial_inputs(model: nn.Module) -> Iterator[Tensor]:
    """Clean statistics first, since an attack uses the statistics of evaluation mode."""
    model = copy.deepcopy(model)
    recompute_statistics(model, batches())
    model.eval()
    for x, y in batches():
        yield pgd(THREAT, steps=3, start="clean")(model, x, y)


def test_an_objective_gives_the_statistics_of_its_own_inputs() -> None:
    model, expected = network(), network()
    recompute_statistics(expected, list(adversarial_inputs(expected)))
    objective = adversarial(pgd(THREAT, steps=3, start="clean"))
    assert recompute_statistics(model, iter(batches()), objective=objective) == 2
    assert same(statistics(model), statistics(expected))
    clean = network()
    recompute_statistics(clean, batches())
    assert not same(statistics(model), statistics(clean))


def test_the_first_layer_sees_the_noise_of_smoothing_and_both_inputs_of_trades() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    recompute_statistics(model, batches(40))
    clean = statistics(model)
    recompute_statistics(model, batches(40), objective=gaussian(sigma=0.5))
    assert ((statistics(model)[1] - clean[1]).mean() - 0.25).abs() < 0.01  # its variance is added

    seen: list[Tensor] = []
    model[1].register_forward_pre_hook(
        lambda layer, args: seen.append(args[0]) if layer.training else None
    )
    recompute_statistics(model, batches(1), objective=trades(THREAT, steps=2))
    passes = seen[1:]  # the first one is the clean pass before the objective's
    assert len(passes) == 2
    mean = (passes[0].mean(0) + passes[1].mean(0)) / 2
    assert torch.allclose(statistics(model)[0], mean, atol=1e-6)


def test_nothing_but_the_statistics_changes() -> None:
    model = network().train()
    model[1].eval()  # frozen
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    assert recompute_statistics(model, batches(), objective=trades(THREAT, steps=2)) == 1
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"5.running_mean", "5.running_var"}
    assert [m.training for m in model.modules()] == modes
    assert model[5].momentum == 0.3 and not model[5]._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())


def test_without_statistics_no_batch_is_loaded() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError
        yield

    for norm in (nn.GroupNorm(2, 6), nn.BatchNorm2d(6, track_running_stats=False), nn.Identity()):
        assert recompute_statistics(nn.Sequential(nn.Conv2d(1, 6, 3), norm), never()) == 0


def test_only_the_batches_asked_for_are_loaded() -> None:
    loader = iter(batches(5))
    model, expected = network(), network()
    recompute_statistics(model, loader, batches=2)
    recompute_statistics(expected, batches(5)[:2])
    assert same(statistics(model), statistics(expected)) and len(list(loader)) == 3


def test_a_compiled_network_and_a_wrapped_one_count_as_the_network() -> None:
    model, expected = network(), network()
    model.compile(backend="eager")
    model(batches()[0][0])
    call = model._compiled_call_impl
    recompute_statistics(torch.compile(model, backend="eager"), batches())
    recompute_statistics(expected, batches())
    assert same(statistics(model), statistics(expected)) and model._compiled_call_impl is call


@pytest.mark.parametrize(
    ("loader", "error", "says"),
    [
        ([], ValueError, "no batch of two points"),
        ([torch.rand(1, 1, 8, 8)], ValueError, "no batch of two points"),
        ([torch.full((4, 1, 8, 8), torch.nan)], ValueError, "layer '1' is NaN"),
        ([{"x": torch.rand(4, 1, 8, 8)}], TypeError, "a dict"),
        ([([1.0], [2.0])], TypeError, "a tuple"),
    ],
)
def test_after_an_error_the_statistics_are_as_before(
    loader: list[Tensor], error: type[Exception], says: str
) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=says):
        recompute_statistics(model, loader)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(m.training for m in model.modules()) and model[5].momentum == 0.3


@pytest.mark.parametrize("count", [0, -1])
def test_no_batches_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"batches is {count}; legal: at least 1"):
        recompute_statistics(network(), batches(), batches=count)
    with pytest.raises(TypeError, match="model is a list"):
        recompute_statistics([network()], batches())  # type: ignore[arg-type]


def test_a_network_cut_in_few_steps_is_itself_again() -> None:
    """Ten steps after the cut, running statistics are still those of the dense network."""
    torch.manual_seed(0)
    means = torch.randn(10, 1, 8, 8)
    y = torch.arange(200) % 10
    x = (means[y] + 0.3 * torch.randn(200, 1, 8, 8)).sigmoid()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    pruner = HydraPruner(model, 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1, momentum=0.9)
    pruner.follow(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    pruner.set_phase("finetune")
    pruner.finalize()

    def accuracy(mode: bool) -> float:
        with torch.no_grad():
            return float((copy.deepcopy(model).train(mode)(x).argmax(1) == y).float().mean())

    by_batch, stale = accuracy(True), accuracy(False)
    recompute_statistics(model, [x])
    assert accuracy(False) == pytest.approx(by_batch, abs=0.02)
    assert by_batch > stale + 0.2
