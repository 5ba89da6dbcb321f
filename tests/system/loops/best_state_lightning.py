"""Plain epochs with a scheduler; the best state_dict on validation points is loaded at the end."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader


class Task(LightningModule):
    def __init__(self, model, epochs, lr):
        super().__init__()
        self.model, self.epochs, self.lr = model, epochs, lr

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        right = (self.model(images).argmax(1) == labels).float().mean()
        self.log("accuracy", right * (self.current_epoch > 0))  # epoch 0 is not pruned yet

    def configure_optimizers(self):
        params = self.model.parameters()
        optimizer = torch.optim.SGD(params, lr=self.lr, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [CosineAnnealingLR(optimizer, T_max=self.epochs)]


def train(model, dataset, validation, epochs=4, lr=0.05):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    pairs = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pruning = ModelPruning("l1_unstructured", pairs, amount=0.9, apply_pruning=lambda e: e == 0)
    best = ModelCheckpoint(monitor="accuracy", mode="max")
    task = Task(model.train(), epochs, lr)
    trainer = Trainer(max_epochs=epochs + 1, callbacks=[pruning, best])
    trainer.fit(task, loader, DataLoader(validation, batch_size=256))
    task.load_state_dict(torch.load(best.best_model_path)["state_dict"])
    return model
