"""A training script of somebody else: a trainer object whose optimizer takes a closure."""

import torch
from torch.nn import functional as F

from robust_plugin import HydraPruner


class Trainer:
    def __init__(self, model, lr=0.01, noise=0.1):
        self.model = model
        self.noise = noise
        self.hydra = HydraPruner(model, density=0.1)
        self.adam = lambda params: torch.optim.Adam(params, lr=lr)
        self.losses = []

    def loss(self, images, labels):
        noisy = images + self.noise * torch.randn_like(images)
        return F.cross_entropy(self.model(noisy), labels)

    def fit(self, batches, epochs):
        lengths = {"prune": epochs, "finetune": epochs}
        for phase in self.hydra.phases(self.adam, epochs=lengths, steps_per_epoch=len(batches)):
            self.optimizer = phase.optimizer
            for _ in range(epochs):
                self.model.train()
                total = 0.0
                for images, labels in batches:

                    def closure(images=images, labels=labels):
                        self.optimizer.zero_grad()
                        loss = self.loss(images, labels)
                        loss.backward()
                        return loss

                    total += float(self.optimizer.step(closure).detach())
                self.losses.append(total / len(batches))
        return self.losses
