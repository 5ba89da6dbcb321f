"""Check whether the running statistics of BatchNorm fit the weights of a network.

In evaluation mode BatchNorm normalises by running statistics. A mask or a new weight changes the
activations at once, and the running statistics follow only over tens of training steps. Until then
the network in evaluation mode is not the one that was trained, and its accuracy may be at chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.distributed import innermost
from robust_plugin.stats import sign_test

# Number of points that are checked. The statistics of fewer points than the second number are too
# noisy to normalise by.
_POINTS, _LEAST_POINTS = 128, 16
# It is a finding if accuracy is lower by at least this share of the points, and if the exact sign
# test on the points where only one of the two is right has a p-value below the second number, which
# takes 11 such points or more.
_LOWER, _P = 0.15, 0.001


def misfit(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """Return one sentence if the running statistics do not fit the weights; else an empty list.

    They do not fit if the network gets far fewer of the points right by running statistics than by
    those of the batch itself, and too many fewer for chance. Only BatchNorm is switched; dropout
    stays off, and no statistic is changed. The first 128 points are checked. The list is empty for
    fewer than 16 points, and for a network without BatchNorm or without running statistics.

    Args:
        model: network in evaluation mode.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
    """
    x, y = x[:_POINTS], y[:_POINTS]
    network = innermost(model)  # a compiled network would be compiled twice more
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and not layer.training
    ]
    if not layers or len(x) < _LEAST_POINTS:
        return []
    with torch.no_grad(), exact(x):
        right = network(x).argmax(1) == y
        with _by_batch_statistics(layers):
            right_by_batch = network(x).argmax(1) == y
    lost, gained = int((right_by_batch & ~right).sum()), int((right & ~right_by_batch).sum())
    if lost - gained < _LOWER * len(x) or sign_test(lost, gained) >= _P:
        return []
    here, there = (100 * float(each.float().mean()) for each in (right, right_by_batch))
    return [
        f"BatchNorm's running statistics do not fit these weights: accuracy {here:.0f} % with "
        f"them, {there:.0f} % with statistics of the batch ({len(x)} points); call "
        "robust_plugin.recompute_statistics(model, train_loader) before the evaluation"
    ]


@contextmanager
def _by_batch_statistics(layers: list[_BatchNorm]) -> Iterator[None]:
    """Within the context, the layers normalise by the statistics of the batch.

    A BatchNorm in evaluation mode does so if it has no running statistics. Its own are taken out
    for that time. In training mode instead, a forward pass would change them, and SyncBatchNorm
    would wait for other processes.
    """
    names = ("running_mean", "running_var")
    kept = [tuple(layer._buffers[name] for name in names) for layer in layers]
    try:
        for layer in layers:
            layer._buffers.update(dict.fromkeys(names))
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            layer._buffers.update(zip(names, buffers, strict=True))
