"""DistributedDataParallel under torchrun: the wrapper is made by a function."""

from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from robust_plugin import HarpPruner


def wrap(model):
    return nn.parallel.DistributedDataParallel(model)


def main(model, dataset, folder, epochs=4, lr=0.05):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(rank)
    loader = DataLoader(dataset, batch_size=16, sampler=DistributedSampler(dataset))
    harp = HarpPruner(model, density=0.1)

    def sgd(params):
        return torch.optim.SGD(params, lr=lr, momentum=0.9)

    for phase in harp.phases(sgd, epochs={"prune": 3, "finetune": 4}, steps_per_epoch=len(loader)):
        optimizer, epochs = phase.optimizer, phase.epochs
        net = wrap(model)
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            net.train()
            for images, labels in loader:
                loss = F.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    torch.save(model.state_dict(), Path(folder) / f"rank{rank}.pt")
    distributed.destroy_process_group()
