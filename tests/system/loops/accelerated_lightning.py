"""Accumulation, clipping and a schedule per step, with Lightning in place of accelerate."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader


class Task(LightningModule):
    def __init__(self, model, lr):
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches
        scheduler = OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def train(model, dataset, epochs=4, lr=0.1):
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    pairs = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pruning = ModelPruning("l1_unstructured", pairs, amount=0.9, apply_pruning=lambda e: e == 0)
    trainer = Trainer(
        max_epochs=epochs + 1,  # the first one is not pruned yet
        accumulate_grad_batches=2,
        gradient_clip_val=5.0,
        callbacks=[pruning],
    )
    trainer.fit(Task(model.train(), lr), loader)
    return model
