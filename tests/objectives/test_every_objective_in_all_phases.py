"""Every objective with every kind of pruner, through pretraining, pruning and finetuning."""

import math

import pytest
import torch

from robust_plugin import (
    Free,
    Group,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Member,
    ThreatModel,
    certified,
    gaussian,
    ibp_margins,
    mixtrain,
    smoothadv,
    stability,
)


def looser(model, x, y, threat):
    """Other bounds than IBP's: valid, and a unit worse."""
    return (ibp_margins(model, x, y, threat) - 1).scatter(1, y[:, None], 0.0)


THREAT, L2 = ThreatModel("Linf", eps=0.02), ThreatModel("L2", eps=0.1)


def pruner_of(kind, model):
    if kind == "hydra":
        return HydraPruner(model, 0.3)
    if kind == "2:4":
        return HydraPruner(model, pattern="2:4")
    if kind == "channels":
        member = Member(model[6], "6", "weight", dim=1, index=torch.arange(128) // 16)
        return HarpPruner(model, 0.5, groups=[Group((member,), channels=8)])
    return {"harp": HarpPruner, "magnitude": MagnitudePruner}[kind](model, 0.3)


OBJECTIVES = {
    "certified": lambda: certified(THREAT, kappa=(1.0, 0.5), nrs=0.01),
    "certified L2": lambda: certified(L2, kappa=(1.0, 0.5)),
    "other bounds": lambda: certified(THREAT, bounds=looser, kappa=(0, 0), beta=(1, 0.5)),
    "mixtrain": lambda: mixtrain(THREAT, bounds=ibp_margins, points=4),
    "gaussian": lambda: gaussian(sigma=0.1),
    "stability": lambda: stability(sigma=0.1),
    "smoothadv": lambda: smoothadv(L2, sigma=0.1, steps=3),
    "free": lambda: Free(THREAT),
}


@pytest.mark.parametrize("kind", ["hydra", "harp", "2:4", "channels", "magnitude"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.filterwarnings("ignore:masks cover")
def test_every_objective_through_pretrain_prune_and_finetune(cnn, name, kind):
    """Two easy classes in each quarter of the image: the loss falls, and the masks move."""
    y = torch.arange(40) % 4
    x = 0.2 * torch.rand(40, 1, 8, 8)
    for i, label in enumerate(y.tolist()):
        x[i, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.7
    model = cnn()

    def train(parameters, lr, pruner=None, phase=None):
        objective = OBJECTIVES[name]()
        optimizer = torch.optim.Adam(parameters, lr=lr)
        if phase == "prune":
            pruner.follow(optimizer, epochs=3, steps_per_epoch=4)
        losses = []
        for step in range(12):
            if hasattr(objective, "progress"):
                objective.progress(step / 4, 3)
            loss = objective(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert all(map(math.isfinite, losses))

    def end():
        model.eval()
        torch.manual_seed(0)
        loss = OBJECTIVES[name]()(model, x, y).item()
        model.train()
        return loss

    before = end()
    train(model.parameters(), 1e-2)
    assert end() < before
    pruner = pruner_of(kind, model)
    if kind != "magnitude":
        first = [mask.scores.detach().clone() for mask in pruner.masks]
        train(pruner.set_phase("prune"), 0.05, pruner, "prune")
        assert all((a != b.scores).any() for a, b in zip(first, pruner.masks, strict=True))
    parameters = pruner.set_phase("finetune")
    pruned = end()
    train(parameters, 5e-3)
    assert end() < max(pruned, 0.1)  # some have learned all there is before
    if kind != "2:4":
        assert pruner.kept == pruner.budget.total
