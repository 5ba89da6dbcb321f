"""The clean forward pass of a training step, whose BatchNorm statistics bounds take over.

In training mode a BatchNorm normalises by its batch's own mean and variance. Bounds by the running
ones are of another network, which lags behind, and its gradient misses that a larger weight is
divided by a larger deviation: deep networks do not train by them. So bounds take the clean batch's
statistics, with their gradient, as auto-LiRPA's training and CTBench do. Proofs are of the network
in evaluation mode, and take the running ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from robust_plugin.certificates.rules import NORMS, kind_of
from robust_plugin.runtime.distributed import innermost

# Mean and biased variance of the inputs of one call; shape [channels].
Statistics = tuple[Tensor, Tensor]

_SEEN: ContextVar[dict[nn.Module, list[Statistics]] | None] = ContextVar("seen", default=None)


@contextmanager
def clean_pass(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Run the model, in its own mode; inside, bounds of it use this batch's statistics.

    Only for BatchNorms in training mode: others use their running statistics anyway.

    Args:
        model: wrapped or not; called once, so that DDP and running statistics see one pass.
        x: shape [B, ...].

    Yields:
        Tensor: the logits.
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
    """Return what a BatchNorm saw in the clean pass, None for its running statistics.

    Args:
        name: for errors.
        norm: of the network that ``clean_pass`` ran.
        call: how often the network has called it before; None where it may be called only once.

    Raises:
        ValueError: if the clean pass did not call it as often, or more than once.
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
    """Record the statistics of all inputs of these layers, with their graph."""

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
    """Keep running statistics: a pass inside moves copies, whose graph may go on using them."""
    kept = [(norm, dict(norm._buffers)) for norm in norms]
    for norm, buffers in kept:
        norm._buffers.update({k: None if b is None else b.clone() for k, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)


def _is_replaced(model: nn.Module, network: nn.Module) -> bool:
    """Whether calling the model may not call the network's layers, and so not their hooks."""
    inside = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inside is not network or getattr(network, "_compiled_call_impl", None) is not None
