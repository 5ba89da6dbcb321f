"""PGD training that switches the gradients of all parameters off for the attack, and on again."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader


def attack(model, images, labels, eps=0.03, steps=2):
    for p in model.parameters():
        p.requires_grad_(False)
    model.eval()
    found = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        found.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(found), labels), found)
        found = found.detach() + eps * grad.sign()
        found = torch.min(torch.max(found, images - eps), images + eps).clamp(0, 1)
    for p in model.parameters():
        p.requires_grad_(True)
    model.train()
    return found.detach()


class Task(LightningModule):
    def __init__(self, model, lr):
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self.model(attack(self.model, images, labels)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9)


def train(model, dataset, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    pairs = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pruning = ModelPruning("l1_unstructured", pairs, amount=0.9, apply_pruning=lambda e: e == 0)
    trainer = Trainer(max_epochs=epochs + 1, callbacks=[pruning])  # epoch 0 is not pruned yet
    trainer.fit(Task(model.train(), lr), loader)
    return model
