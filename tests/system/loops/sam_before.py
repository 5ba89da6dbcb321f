"""Sharpness-aware minimisation: an optimizer whose loop calls first_step and second_step."""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base_optimizer, rho=0.05, **settings):
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def trained(self):
        params = (p for group in self.param_groups for p in group["params"])
        return [p for p in params if p.grad is not None]

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self.trained()]).norm() + 1e-12
        for p in self.trained():
            self.state[p]["before"] = p.clone()
            p.add_(p.grad, alpha=float(self.defaults["rho"] / norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.trained():
            p.copy_(self.state[p]["before"])
        self.base_optimizer.step()
        self.zero_grad()


def train(model, dataset, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=lr, momentum=0.9)
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            F.cross_entropy(model(images), labels).backward()
            optimizer.first_step()
            F.cross_entropy(model(images), labels).backward()
            optimizer.second_step()
    return model
