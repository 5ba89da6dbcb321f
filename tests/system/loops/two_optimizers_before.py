"""Two optimizers: Muon for the matrices, AdamW for everything else."""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader


def train(model, dataset, epochs=4, lr=0.02):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizers = [torch.optim.Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr)]
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
    return model
