"""Adversarial weight perturbation: a proxy finds a direction, the step is made from there."""

import copy

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader


class WeightPerturbation:
    def __init__(self, model, gamma=0.005, lr=0.01):
        self.model, self.gamma = model, gamma
        self.proxy = copy.deepcopy(model)
        self.proxy_optimizer = torch.optim.SGD(self.proxy.parameters(), lr=lr)

    def difference(self, images, labels):
        self.proxy.load_state_dict(self.model.state_dict())
        self.proxy.train()
        loss = -F.cross_entropy(self.proxy(images), labels)
        self.proxy_optimizer.zero_grad()
        loss.backward()
        self.proxy_optimizer.step()
        old, found = dict(self.model.named_parameters()), {}
        for name, new in self.proxy.named_parameters():
            if "weight" in name and new.dim() > 1:
                moved = (new - old[name]).detach()
                found[name] = moved * old[name].detach().norm() / (moved.norm() + 1e-20)
        return found

    @torch.no_grad()
    def shift(self, difference, sign):
        for name, p in self.model.named_parameters():
            if name in difference:
                p.add_(difference[name], alpha=sign * self.gamma)


def train(model, dataset, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    awp = WeightPerturbation(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            difference = awp.difference(images, labels)
            awp.shift(difference, 1)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            awp.shift(difference, -1)
    return model
