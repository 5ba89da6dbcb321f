"""Record the BatchNorm statistics of the clean batch, so that bounds in training can use them.

In training mode, a BatchNorm normalises by the mean and variance of its batch. Bounds that use the
running statistics instead would be bounds of a different network, since the running statistics lag
behind. And their gradient would miss that larger weights also make the variance, by which the
BatchNorm divides, larger; deep networks cannot be trained like this. So bounds in training use the
statistics of the clean batch and are differentiated through them, as in auto-LiRPA's training and
CTBench. Proofs are about the network in evaluation mode, so they use the running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from robust_plugin.attacks.logits import outputs_of
from robust_plugin.certificates.rules import NORMS
from robust_plugin.masks.masked_layer import plain_class
from robust_plugin.runtime.distributed import innermost

# Mean and biased variance of a BatchNorm's inputs in one call; each of shape [channels].
Statistics = tuple[Tensor, Tensor]

# For each BatchNorm in training mode, its statistics in the order of its calls; None outside
# clean_pass.
_SEEN: ContextVar[dict[nn.Module, list[Statistics]] | None] = ContextVar("seen", default=None)


@contextmanager
def clean_pass(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Run the model on a clean batch; within the context, bounds use the statistics of that batch.

    The model runs in the mode it is in. For each BatchNorm in training mode, the mean and variance
    of its inputs are recorded, with their graph. Bounds that are computed within the context
    normalise by them instead of the running statistics. BatchNorms in evaluation mode use their
    running statistics as always.

    Args:
        model: network, with or without a wrapper such as DDP. It is called once, so its running
            statistics are updated once.
        x: clean inputs, shape [B, ...].

    Yields:
        Tensor: the logits, shape [B, classes].
    """
    network = innermost(model)
    seen: dict[nn.Module, list[Statistics]] = {
        layer: [] for layer in network.modules() if plain_class(layer) in NORMS and layer.training
    }
    if seen and _is_replaced(model, network):
        logits = outputs_of(model, x)
        with _unmoved(seen), _recorded(seen):
            network.forward(x)
    else:
        with _recorded(seen):
            logits = outputs_of(model, x)
    before = _SEEN.set(seen)
    try:
        yield logits
    finally:
        _SEEN.reset(before)


def statistics_of(name: str, norm: nn.Module, call: int | None = None) -> Statistics | None:
    """Return mean and variance of a BatchNorm's inputs on the batch of ``clean_pass``.

    The result is None outside of ``clean_pass`` and for a BatchNorm in evaluation mode: bounds then
    use the running statistics.

    Args:
        name: the layer's name, for errors.
        norm: the BatchNorm, a layer of the network that ``clean_pass`` ran.
        call: which call of the layer is meant, from 0, if the network calls it several times; None
            if the bounding method uses one mean and variance for all calls of a layer.

    Raises:
        ValueError: if the layer was not called that often in the clean pass, or, with
            ``call=None``, was called more than once.
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
    """Within the context, append the mean and variance of each call of these layers to ``seen``.

    Args:
        seen: for each BatchNorm to record, the list that its statistics are appended to, with their
            graph, in the order of the calls.
    """

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
    """Within the context, forward passes update copies of the running statistics.

    At the end, the layers have their original tensors again, with unchanged values. The tensors are
    exchanged and not overwritten, because the graph of a forward pass may still need the copies.

    Args:
        norms: the BatchNorms, as keys; the values are not used.
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
    """Return whether a call of ``model`` may bypass the layers of ``network`` and so their hooks.

    This is so for a compiled network and for every wrapper other than DDP.

    Args:
        model: the network, with or without wrappers.
        network: the network inside the wrappers.
    """
    inside = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inside is not network or getattr(network, "_compiled_call_impl", None) is not None
