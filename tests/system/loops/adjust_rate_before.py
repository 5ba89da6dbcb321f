"""A loop that sets the learning rate of group 0 by hand, and resumes from its own checkpoint."""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader


def adjust_learning_rate(optimizer, epoch, epochs, lr):
    optimizer.param_groups[0].update(lr=lr if epoch < 0.75 * epochs else 0.1 * lr)


def train(model, dataset, checkpoint, epochs=4, lr=0.05, resume=False):
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    first = 0
    if resume:
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        first = state["epoch"]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if resume:
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(first, epochs):
        torch.manual_seed(epoch)
        adjust_learning_rate(optimizer, epoch, epochs, lr)
        model.train()
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "epoch": epoch + 1}, checkpoint)
    return model
