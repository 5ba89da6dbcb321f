"""Hugging Face accelerate: model, optimizer, loader and scheduler go through prepare."""

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader


def train(model, dataset, epochs=4, lr=0.1):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    steps = len(loader) // 2
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * steps)
    net, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for _ in range(epochs):
        net.train()
        for images, labels in loader:
            with accelerator.accumulate(net):
                loss = F.cross_entropy(net(images), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 5.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(net)
