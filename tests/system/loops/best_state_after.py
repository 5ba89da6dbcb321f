"""Plain epochs with a scheduler; the best state_dict on validation points is loaded at the end."""

import copy

import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from robust_plugin import HarpPruner


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    return right / len(loader.dataset)


def train(model, dataset, validation, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    harp = HarpPruner(model, density=0.1)

    def sgd(params):
        return torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=5e-4)

    for phase in harp.phases(sgd, epochs={"prune": 3, "finetune": 4}, steps_per_epoch=len(loader)):
        optimizer, epochs = phase.optimizer, phase.epochs
        scheduler = CosineAnnealingLR(optimizer, T_max=epochs)
        best, best_state = -1.0, None
        for _ in range(epochs):
            model.train()
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            scheduler.step()
            now = accuracy(model, DataLoader(validation, batch_size=256))
            if now > best:
                best, best_state = now, copy.deepcopy(model.state_dict())
        model.load_state_dict(best_state)
    return model
