"""PyTorch-Ignite: engines with handlers; the best state is kept by an event handler."""

import copy

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import LRScheduler
from ignite.metrics import Accuracy
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from robust_plugin import HarpPruner


def keep_best(model, evaluator, loader, best):
    now = evaluator.run(loader).metrics["accuracy"]
    if now > best["accuracy"]:
        best.update(accuracy=now, state=copy.deepcopy(model.state_dict()))


def train(model, dataset, validation, epochs=4, lr=0.05):
    loader, held_out = DataLoader(dataset, 32, shuffle=True), DataLoader(validation, 256)
    evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy()})
    harp = HarpPruner(model, density=0.1)

    def sgd(params):
        return torch.optim.SGD(params, lr=lr, momentum=0.9)

    for phase in harp.phases(sgd, epochs={"prune": 3, "finetune": 4}, steps_per_epoch=len(loader)):
        optimizer, epochs = phase.optimizer, phase.epochs
        scheduler = LRScheduler(StepLR(optimizer, step_size=3))
        trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
        best, done = {"accuracy": -1.0}, Events.EPOCH_COMPLETED
        trainer.add_event_handler(done, scheduler)
        trainer.add_event_handler(done, keep_best, model, evaluator, held_out, best)
        trainer.run(loader, max_epochs=epochs)
        model.load_state_dict(best["state"])
    return model
