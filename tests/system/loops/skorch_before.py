"""skorch: the network as a scikit-learn classifier that has its own training loop."""

import torch
from skorch import NeuralNetClassifier
from torch import nn


def train(model, x, y, epochs=4, lr=0.05):
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
    net.fit(x, y)
    return net
