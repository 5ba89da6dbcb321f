"""Record the BatchNorm statistics of the clean batch, so that bounds in training can use them.

In training mode a BatchNorm normalises by the mean and variance of its batch. Bounds with the
running statistics would be bounds of another network, which lags behind, and their gradient would
miss that a larger weight is divided by a larger deviation; deep networks do not train this way. So
bounds use the statistics of the clean batch, with their gradient, as auto-LiRPA's training and
CTBench do. Proofs are about the network in evaluation mode and use the running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from robust_plugin.certificates.rules import NORMS, kind_of
from robust_plugin.runtime.distributed import innermost

# Mean and biased variance of a BatchNorm's inputs in one call; each of shape [channels].
Statistics = tuple[Tensor, Tensor]

# For each BatchNorm in training mode, its statistics in the order of its calls; None outside
# clean_pass.
_SEEN: ContextVar[dict[nn.Module, list[Statistics]] | None] = ContextVar("seen", default=None)


@contextmanager
def clean_pass(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Run the model in its present mode; within the context, bounds use this batch's statistics.

    This concerns BatchNorms in training mode. All others use their running statistics anyway.

    Args:
        model: network, wrapped or not. It is called once, so that DDP and the running statistics
            see one pass.
        x: clean inputs, shape [B, ...].

    Yields:
        Tensor: the logits, shape [B, classes].
    """
    network = innermost(model)
    seen: dict[nn.Module, list[Statistics]] = {
        layer: [] for layer in network.modules() if kind_of(layer) in NORMS and layer.training
    }
    if seen and _is_replaced(model, network):
        logits = model(x)
        with _unmoved(seen), _recorded(seen):
            network.forward(x)
    else:
        with _recorded(seen):
            logits = model(x)
    before = _SEEN.set(seen)
    try:
        yield logits
    finally:
        _SEEN.reset(before)


def statistics_of(name: str, norm: nn.Module, call: int | None = None) -> Statistics | None:
    """Return the statistics of the clean batch at a BatchNorm, or None for its running statistics.

    Args:
        name: the layer's name, for errors.
        norm: the BatchNorm, a layer of the network that ``clean_pass`` ran.
        call: number of earlier calls of the layer in this pass of the bounds; None if the bounding
            method takes one set of statistics per layer.

    Raises:
        ValueError: if the clean pass called the layer less often than the bounds do, or, with
            ``call=None``, more than once.
    """
    seen = _SEEN.get()
    if seen is None or norm not in seen or not norm.training:
        return None
    if call is None and len(seen[norm]) > 1:
        raise ValueError(
            f"layer {name!r} is a BatchNorm that the network calls {len(seen[norm])} times, each "
            "time with statistics of its own; these bounds take one. Take ibp_margins, or a layer "
            "for each call."
        )
    if (call or 0) >= len(seen[norm]):
        raise ValueError(
            f"layer {name!r} is a BatchNorm that the clean forward pass called {len(seen[norm])} "
            "times, fewer than the bounds' pass: its statistics are unknown. Do not compile parts "
            "of the network, or put the layer into evaluation mode."
        )
    return seen[norm][call or 0]


@contextmanager
def _recorded(seen: dict[nn.Module, list[Statistics]]) -> Iterator[None]:
    """Append the statistics of each call of these layers to ``seen``, with their graph."""

    def record(layer: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            z = args[0] if args else kwargs["input"]
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            dims = [d for d in range(z.dim()) if d != 1]
            variance, mean = torch.var_mean(z, dims, correction=0)
            seen[layer].append((mean, variance))

        return hook

    handles = [layer.register_forward_pre_hook(record(layer), with_kwargs=True) for layer in seen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unmoved(norms: dict[nn.Module, list[Statistics]]) -> Iterator[None]:
    """Within the context, passes update copies of the running statistics.

    Afterwards the original tensors are back, unchanged. The graph of the pass may need the copies.
    """
    kept = [(norm, dict(norm._buffers)) for norm in norms]
    for norm, buffers in kept:
        norm._buffers.update({k: None if b is None else b.clone() for k, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)


def _is_replaced(model: nn.Module, network: nn.Module) -> bool:
    """Return whether a call of the model may bypass the network's layers, and so their hooks."""
    inside = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inside is not network or getattr(network, "_compiled_call_impl", None) is not None
