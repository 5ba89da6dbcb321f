"""Running statistics of BatchNorm, measured anew for the network as it is now.

In evaluation mode, a BatchNorm normalises by running statistics: exponential averages over the
training steps so far. A new mask changes the activations at once, and the running statistics follow
only within tens of steps. Until then, the network in evaluation mode is not the one that was
trained: its accuracy may be at chance although its training loss is low. Attacks in training,
validation and evaluation all use evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.contexts import keeping_modes
from robust_plugin.runtime.distributed import innermost, rank_and_world


@explain_wrong_calls
def recompute_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    objective: Callable[[nn.Module, Tensor, Tensor], Any] | None = None,
) -> int:
    """Measure the running statistics of all BatchNorms anew, on batches of training inputs.

    Call this after masks have changed, and before the network is evaluated::

        recompute_statistics(model, train_loader, batches=20)
        evaluate(model, test_loader, attacks=[attack])

    A running mean becomes the mean of the means of the batches, and a running variance becomes the
    mean of their unbiased variances, each weighted by the number of points of its batch. This is
    the average of ``torch.optim.swa_utils.update_bn``, with two differences: dropout is off,
    because the statistics are for evaluation mode, and small batches weigh less. No weight changes.

    Several processes may each give batches of their own: all of them then get the mean over all
    batches. If a layer is a SyncBatchNorm, each process must give the same number of batches.

    Args:
        model: network, with or without masks or a wrapper such as DDP; its statistics are changed
            in place. Layers without running statistics, and frozen ones (in evaluation mode within
            a model in training mode), are left as they are.
        loader: batches of training inputs: tensors x of shape [B, ...], or pairs (x, y). They are
            copied to the device of the network. A batch of one point has no variance and is left
            out.
        batches: number of batches to use; None uses the whole loader. About 1,000 points are
            enough.
        objective: a training objective, such as ``trades(threat)``: the statistics are then those
            of all inputs that it passes through the network in training, such as adversarial or
            noisy ones. The loader must give labels, and its batches are kept in memory. None
            measures clean inputs.

    Returns:
        int: number of layers whose statistics were measured. If it is 0, no batch was loaded.

    Raises:
        ValueError: if the loader has no batch of at least two points, ``batches`` is below 1, or a
            statistic becomes NaN or infinite. The statistics are then as before.
        TypeError: if ``model`` is no nn.Module, or a batch is not of one of the legal forms.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2))
        >>> recompute_statistics(model, [torch.tensor([[0.0, 1.0], [2.0, 1.0]])])
        1
        >>> model[1].running_mean, model[1].running_var
        (tensor([1., 1.]), tensor([2., 0.]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the network, an nn.Module.")
    if batches is not None and batches < 1:
        raise ValueError(f"batches is {batches}; legal: at least 1, or None for the whole loader.")
    network = innermost(model)
    layers = {
        layer: name
        for name, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and (layer.training or not network.training)
    }
    if not layers:
        return 0
    chosen: Iterable[Any] = islice(loader, batches)
    if objective is not None:
        chosen = list(chosen)
    # Attacks use the running statistics, so those of clean inputs come first.
    _measure(network, layers, chosen, lambda model, x, y: model(x))
    if objective is not None:
        _measure(network, layers, chosen, objective)
    return len(layers)


@dataclass
class _Average:
    """Weighted mean of the statistics of one layer over its calls in training mode.

    Attributes:
        points: number of points so far.
        mean: mean of the inputs so far, shape [channels].
        variance: mean of the unbiased variances so far, shape [channels].
    """

    points: float = 0.0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    variance: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, inputs: Tensor) -> None:
        """Add the inputs of one call, shape [B, channels, ...]."""
        inputs = inputs.detach()
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        dims = [dim for dim in range(inputs.dim()) if dim != 1]
        variance, mean = torch.var_mean(inputs, dims)
        self.points += len(inputs)
        share = len(inputs) / self.points
        self.mean = self.mean.to(mean) + share * (mean - self.mean.to(mean))
        self.variance = self.variance.to(mean) + share * (variance - self.variance.to(mean))


def _measure(
    network: nn.Module,
    layers: dict[_BatchNorm, str],
    loader: Iterable[Any],
    objective: Callable[[nn.Module, Tensor, Tensor], Any],
) -> None:
    """Set the running statistics of layers to those of the inputs that an objective passes.

    Args:
        network: network without wrappers.
        layers: the layers, with their names.
        loader: batches x or (x, y).
        objective: function of (network, x, y) that runs the network; its value is not used.
    """
    device = next(iter(layers)).get_buffer("running_mean").device
    with torch.no_grad(), _recorded(network, list(layers)) as averages:
        for batch in loader:
            x, y = _pair(batch)
            if len(x) > 1:
                objective(network, x.to(device), y.to(device))
    found = [_over_processes(averages[layer], layer) for layer in layers]
    if not any(average.points for average in found):
        raise ValueError(
            "the loader gives no batch of two points or more; give batches of training inputs."
        )
    for name, average in zip(layers.values(), found, strict=True):
        for what, value in (("mean", average.mean), ("variance", average.variance)):
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"the {what} of the inputs of layer {name!r} is NaN or infinite; look for NaN "
                    "in the training inputs, and for weights that have diverged."
                )
    for layer, average in zip(layers, found, strict=True):
        if average.points:  # a layer that the network does not call keeps its statistics
            layer.get_buffer("running_mean").copy_(average.mean)
            layer.get_buffer("running_var").copy_(average.variance)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of a batch; labels are empty if the batch is a tensor."""
    x, y = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (batch, torch.empty(0))
    if not (isinstance(x, Tensor) and x.dim() > 1 and isinstance(y, Tensor)):
        raise TypeError(
            f"the loader gives a {type(batch).__name__}; legal: tensors x of shape [B, ...], or "
            "pairs (x, y) of tensors."
        )
    return x, y


@contextmanager
def _recorded(network: nn.Module, layers: list[_BatchNorm]) -> Iterator[dict[nn.Module, _Average]]:
    """Within the context, the statistics of the layers' inputs in training mode are recorded.

    Only these layers are in training mode. Their running statistics do not move, so that an attack,
    which puts the whole network into evaluation mode, sees the same network in every batch.

    Yields:
        dict: the averages of each layer so far.
    """
    averages: dict[nn.Module, _Average] = {layer: _Average() for layer in layers}
    # Compiled calls would be compiled anew for the hooks and the modes of this context.
    compiled = {
        module: vars(module).pop("_compiled_call_impl")
        for module in network.modules()
        if "_compiled_call_impl" in vars(module)
    }
    before = [(layer.momentum, dict(layer._buffers)) for layer in layers]

    def record(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if layer.training:
            averages[layer].add(args[0] if args else kwargs["input"])

    handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        with keeping_modes(network):
            network.eval()
            for layer, (_, buffers) in zip(layers, before, strict=True):
                layer.training, layer.momentum = True, 0.0
                # Copies, because inputs that are not finite change them even at momentum 0.
                for name, buffer in buffers.items():
                    layer._buffers[name] = None if buffer is None else buffer.clone()
            yield averages
    finally:
        for layer, handle, (momentum, buffers) in zip(layers, handles, before, strict=True):
            layer.momentum = momentum
            layer._buffers.update(buffers)
            handle.remove()
        for module, call in compiled.items():
            vars(module)["_compiled_call_impl"] = call


def _over_processes(average: _Average, layer: _BatchNorm) -> _Average:
    """Return the average of a layer over all processes, weighted by the points of each."""
    if rank_and_world()[1] == 1:
        return average
    mean = layer.get_buffer("running_mean")
    sums = torch.zeros(1 + 2 * mean.numel(), dtype=torch.float64, device=mean.device)
    if average.points:
        sums[0] = average.points
        sums[1:] = average.points * torch.cat([average.mean, average.variance]).double()
    distributed.all_reduce(sums)
    points = float(sums[0])
    means = sums[1:] / max(points, 1.0)
    return _Average(points, *(part.to(mean) for part in means.chunk(2)))
