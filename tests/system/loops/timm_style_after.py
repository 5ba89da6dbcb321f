"""After the pattern of timm's train.py: weight decay by name, an EMA, resume from a checkpoint."""

import copy

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from robust_plugin import HarpPruner, finalize


class ModelEma:
    def __init__(self, model, decay=0.9):
        self.module, self.decay = copy.deepcopy(model).eval(), decay

    @torch.no_grad()
    def update(self, model):
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        for mean, new in pairs:
            mean.copy_(self.decay * mean + (1.0 - self.decay) * new)


def create_optimizer(args, model):
    decay, no_decay = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (no_decay if p.ndim < 2 or name.endswith("bias") else decay).append(p)
    groups = [{"params": no_decay, "weight_decay": 0.0}, {"params": decay}]
    return torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)


def train_one_epoch(args, epoch, model, loader, optimizer, ema):
    torch.manual_seed(args.seed + epoch)
    model.train()
    for images, labels in loader:
        loss = F.cross_entropy(model(images), labels, label_smoothing=args.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)


def main(args, model, dataset):
    loader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)
    harp = HarpPruner(model, density=0.1)
    first, epochs = 0, args.epochs
    if args.resume:
        state = torch.load(args.resume)
        model.load_state_dict(state["model"])
        first = state["epoch"] + 1

    def adam(_):
        return create_optimizer(args, model)

    for phase in harp.phases(adam, epochs={"prune": 3, "finetune": 4}, steps_per_epoch=len(loader)):
        optimizer, first, epochs = phase.optimizer, phase.first_epoch, phase.epochs
        ema = ModelEma(model)
        if phase.resumed:
            optimizer.load_state_dict(state["optimizer"])
            ema.module.load_state_dict(state["ema"])
        for epoch in range(first, epochs):
            train_one_epoch(args, epoch, model, loader, optimizer, ema)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"ema": ema.module.state_dict(), "epoch": epoch}
            torch.save(state, args.output)
    finalize(ema.module)
    return model, ema.module
