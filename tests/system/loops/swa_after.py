"""Stochastic weight averaging: the mean network of the last epochs, with statistics of its own."""

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader

from robust_plugin import HydraPruner, finalize


def train(model, dataset, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    hydra = HydraPruner(model, density=0.1)

    def sgd(params):
        return torch.optim.SGD(params, lr=lr, momentum=0.9)

    for phase in hydra.phases(sgd, epochs={"prune": 3, "finetune": 4}, steps_per_epoch=len(loader)):
        optimizer, epochs = phase.optimizer, phase.epochs
        averaged = AveragedModel(model)
        scheduler = SWALR(optimizer, swa_lr=0.5 * lr, anneal_epochs=2)
        for epoch in range(epochs):
            model.train()
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch >= epochs // 2:
                averaged.update_parameters(model)
                scheduler.step()
        update_bn(loader, averaged)
    finalize(averaged.module)
    return averaged.module
