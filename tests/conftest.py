"""Small networks and generated data; one thread, since two only get in each other's way."""

import copy
import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_plugin import (
    Group,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Member,
    Pruner,
    ThreatModel,
    finalize,
)

torch.set_num_threads(1)

Build = Callable[..., nn.Module]
Train = Callable[..., None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no process waits for one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cnn() -> Build:
    """A fresh network of 72 + 288 + 1280 prunable weights for inputs [B, 1, 8, 8]."""

    def build(seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(128, 10),
            )

    return build


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(16, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (16,), generator=generator)


@pytest.fixture
def threat() -> ThreatModel:
    return ThreatModel("Linf", eps=0.1)


@pytest.fixture
def attach() -> Callable[..., Pruner]:
    """A pruner by the name of its corner of the square."""

    def attach(kind: str, model: nn.Module, density: float, **options: Any) -> Pruner:
        if kind == "magnitude":
            return MagnitudePruner(model, density, **options)
        if kind == "hydra":
            return HydraPruner(model, density, **options)
        if kind == "rates":
            return HarpPruner(model, density, learn=("rates",), **options)
        control = {"held": "held", "hinge": "hinge"}[kind]
        return HarpPruner(model, density, control=control, **options)  # type: ignore[arg-type]

    return attach


@pytest.fixture
def train(batch: tuple[Tensor, Tensor]) -> Train:
    """Train a pruner's model for a phase, on the batch, by SGD with momentum."""

    def train(pruner: Pruner, phase: str, steps: int = 5, lr: float = 0.05) -> None:
        x, y = batch
        optimizer = torch.optim.SGD(pruner.set_phase(phase), lr=lr, momentum=0.9)  # type: ignore[arg-type]
        if phase == "prune":
            pruner.follow(optimizer, epochs=1, steps_per_epoch=steps)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(pruner.model(x), y) + pruner.budget_penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


class Residual(nn.Module):
    """relu(f(x)) + x."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x)) + x


class Shifted(nn.Module):
    """(x - mean) / std, as a normalisation layer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 1, 1, 1))
        self.register_buffer("std", torch.rand(1, 1, 1, 1) + 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _random_layers(draw: random.Random, channels: int, side: int) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = [Shifted()] if draw.random() < 0.3 else []
    activation = draw.choice([nn.ReLU] * 6 + [nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
    for _ in range(draw.randint(1, 3)):
        groups = draw.choice([1, 1, channels])
        width = groups * draw.randint(1, 3)
        kernel, dilation = draw.randint(1, 3), draw.randint(1, 2)
        reach = dilation * (kernel - 1)
        padding = draw.randint(0, reach)
        if side + 2 * padding <= reach:
            break
        stride = draw.randint(1, 2) if side > 4 else 1
        layers.append(
            nn.Conv2d(
                channels, width, kernel, stride=stride, padding=padding, dilation=dilation,
                groups=groups, bias=draw.random() < 0.7,
            )
        )  # fmt: skip
        channels, side = width, (side + 2 * padding - reach - 1) // stride + 1
        if draw.random() < 0.5:
            norm = nn.BatchNorm2d(channels)
            for each in (norm.running_mean, norm.weight, norm.bias):
                nn.init.normal_(each)
            nn.init.uniform_(norm.running_var, 0.3, 3)
            layers.append(norm)
        layers.append(activation())
        if draw.random() < 0.3:
            layers.append(Residual(nn.Conv2d(channels, channels, 3, padding=1)))
        if draw.random() < 0.3 and side >= 2:
            layers.append(draw.choice([nn.AvgPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2)]))
            side //= 2
    return layers, channels * side * side


def _masked(draw: random.Random, model: nn.Module) -> None:
    """Attach what keeps 1 to 50 % of the weights, or of the input channels."""
    density = draw.choice([0.01, 0.1, 0.5])
    convs = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if convs and draw.random() < 0.3:
            channels = [
                Group((Member(layer, name, "weight", dim=1),), channels=layer.in_channels)
                for name, layer in convs
            ]
            pruner: Pruner = HarpPruner(model, density, groups=channels)
        else:
            pruner = HarpPruner(model, density)
        pruner.set_phase("prune")
        for mask in pruner.masks:
            nn.init.normal_(mask.scores)
            mask.unfollowed = False
        pruner.update_masks()


@pytest.fixture
def random_network() -> Callable[[int], tuple[nn.Module, Tensor, Tensor]]:
    """A network, two points of [0, 1] and labels: strides, dilations, groups, BN, pools, masks."""

    def build(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
        draw = random.Random(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            channels, side, classes = draw.randint(1, 3), draw.randint(5, 8), draw.randint(3, 5)
            layers, features = _random_layers(draw, channels, side)
            layers.append(nn.Flatten())
            if draw.random() < 0.5:
                layers += [nn.Linear(features, 12), nn.ReLU()]
                features = 12
            model = nn.Sequential(*layers, nn.Linear(features, classes)).eval()
            if draw.random() < 0.6:
                _masked(draw, model)
            x = (1.4 * torch.rand(2, channels, side, side) - 0.2).clamp(0, 1)
            return model, x, torch.randint(classes, (2,))

    return build


@pytest.fixture
def highest_excess() -> Callable[..., float]:
    """How far any bound lies above a margin that samples or float64 PGD reach; sound if <= 0."""

    def excess(
        model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *bounds: Tensor
    ) -> float:
        exact = copy.deepcopy(model).double().eval()
        with suppress(ValueError):  # not masked
            finalize(exact)
        x, classes = x.double(), bounds[0].shape[1]
        worst = torch.full_like(bounds[0], torch.inf, dtype=torch.double)

        def margins(points: Tensor) -> Tensor:
            logits = exact(points)
            return logits.gather(1, y.repeat(len(points) // len(y))[:, None]) - logits

        def visit(points: Tensor) -> None:
            found = margins(points).detach().view(-1, len(y), classes).amin(0)
            torch.minimum(worst, found, out=worst)

        signs = torch.randint(-1, 2, (50, *x.shape)).double()
        visit(threat.project((x + threat.eps * signs).flatten(0, 1), x.repeat(50, 1, 1, 1)))
        start = x.repeat(classes, 1, 1, 1)
        point = start.clone()
        for step in range(12):
            point.requires_grad_()
            chosen = margins(point).view(classes, len(y), classes).diagonal(dim1=0, dim2=2)
            (grad,) = torch.autograd.grad(chosen.sum(), point)
            size = threat.eps * (1.0 if step < 2 else 0.3)
            scaled = (
                grad.sign()
                if threat.norm == "Linf"
                else grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            )
            point = threat.project(point.detach() - size * scaled, start)
            visit(point)
        slacks = (1e-5 * (1 + bound.abs().amax(1, keepdim=True)) for bound in bounds)
        return max(
            float((bound - worst - slack).detach().max())
            for bound, slack in zip(bounds, slacks, strict=True)
        )

    return excess


@pytest.fixture
def check_gradients() -> Callable[..., None]:
    """Gradients of margins in float64: finite differences of weights, formulas of scores, rates."""

    def check(
        model: nn.Module, pruner: Pruner, bounds: Callable[[nn.Module], Tensor], rel: float = 1e-5
    ) -> None:
        plain = copy.deepcopy(model)
        finalize(plain)
        plain.requires_grad_(True)
        weighting = torch.randn_like(bounds(plain))
        (weighting * bounds(plain)).sum().backward()
        (weighting * bounds(model)).sum().backward()
        step, checked = 1e-6, 0
        for group, mask in zip(pruner.groups, pruner.masks, strict=True):
            member = group.members[0]
            layer = plain.get_submodule(member.layer_name)
            w = layer.weight
            shape = [-1 if d == member.dim else 1 for d in range(w.dim())]
            m, s = mask.mask, mask.scores
            if member.dim is not None:
                m = (m if member.index is None else m[member.index]).view(shape)
            kept = m.expand_as(w).flatten().nonzero().flatten()
            scale = w.grad.abs().max()
            for i in kept[torch.randperm(len(kept))[:8]].tolist():
                ends = []
                with torch.no_grad():
                    for move in (step, -2 * step, step):
                        w.view(-1)[i] += move
                        ends.append((weighting * bounds(plain)).sum())
                slope = (ends[0] - ends[1]) / (2 * step)
                assert abs(slope - w.grad.view(-1)[i]) <= rel * max(abs(slope), scale)
                checked += 1
            # dL/dm = w g with the underlying w, over all entries, kept or not.
            under = model.get_submodule(member.layer_name)._parameters["weight"]
            to_mask = under * w.grad
            if member.dim is not None:
                by_channel = to_mask.movedim(member.dim, 0).flatten(1).sum(1)
                index = torch.arange(len(by_channel)) if member.index is None else member.index
                to_mask = torch.zeros(len(s), dtype=w.dtype).index_add(0, index, by_channel)
            wanted = s.sign() * to_mask.view_as(s)
            assert torch.allclose(s.grad.double(), wanted.double(), rtol=1e-4, atol=1e-6)
            sigmoid = torch.sigmoid(mask.rate)
            slope = sigmoid * (1 - sigmoid) * (1 - mask.k_min)
            assert mask.rate.grad.item() == pytest.approx(
                float((to_mask.sum() * slope).detach()), rel=1e-3, abs=1e-5
            )
        assert checked >= 8

    return check
