"""skorch: the network as a scikit-learn classifier that has its own training loop."""

import torch
from skorch import NeuralNetClassifier
from torch import nn

from robust_plugin import HarpPruner


def train(model, x, y, epochs=4, lr=0.05):
    harp = HarpPruner(model, density=0.1)
    net = NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=lr,
        max_epochs=epochs,
        batch_size=32,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    lengths = {"epochs": {"prune": epochs, "finetune": epochs}, "steps_per_epoch": len(x) // 32}
    for _ in harp.phases(lambda _: net.initialize().optimizer_, **lengths):
        net.partial_fit(x, y)
    return net
