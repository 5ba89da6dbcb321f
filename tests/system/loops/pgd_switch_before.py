"""PGD training that switches the gradients of all parameters off for the attack, and on again."""

import torch
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


def train(model, dataset, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(model(attack(model, images, labels)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model
