"""A training script of somebody else: AMP, GradScaler, EMA, gradient accumulation, LR schedule."""

import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

EPS = 0.05


def fgsm(model, images, labels):
    noisy = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1).requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(noisy), labels), noisy)
    stepped = noisy.detach() + EPS * grad.sign()
    return torch.min(torch.max(stepped, images - EPS), images + EPS).clamp(0, 1)


def train(model, dataset, epochs=4, batch_size=16, accumulate=2, lr=0.1, device="cpu"):
    model = model.to(device)
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    steps = len(loader) // accumulate
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    scheduler = OneCycleLR(optimizer, max_lr=lr, epochs=epochs, steps_per_epoch=steps)
    scaler = torch.amp.GradScaler(device)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    history = []
    for _epoch in range(epochs):
        model.train()
        running = 0.0
        for i, (images, labels) in enumerate(loader):
            images, labels = images.to(device), labels.to(device)
            with torch.autocast(device, dtype=torch.bfloat16):
                attacked = fgsm(model, images, labels)
                loss = F.cross_entropy(model(attacked), labels)
            scaler.scale(loss / accumulate).backward()
            running += loss.item() / len(loader)
            if (i + 1) % accumulate == 0:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                scheduler.step()
                ema.update_parameters(model)
        history.append(running)
    return model, ema.module, history
