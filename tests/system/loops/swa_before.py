"""Stochastic weight averaging: the mean network of the last epochs, with statistics of its own."""

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader


def train(model, dataset, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
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
    return averaged.module
