"""Deployment on a CPU: CSR products where they were timed to be faster than the dense layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robust_plugin.copies.agreement import same_gradients
from robust_plugin.copies.copied import copied
from robust_plugin.export.csr_layers import SparseConv2d, SparseLayer, SparseLinear, with_layers
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.prunable import refuse_fixed
from robust_plugin.runtime.timing import alternating

# A Linear layer that keeps half its weights is slower in CSR on every machine tried.
_MOST_KEPT = 0.3


# What two timings of the same thing differ by on a busy machine is not enough: a layer takes less
# than this share of the dense one's time, and the whole network than this of the dense network's.
_CLEARLY = 0.9


_NETWORK = 0.97


# One unfolded example of a convolution may take this much memory.
_MOST_BYTES = 256 * 2**20


# Two ways to compute the same outputs differ by rounding; more than this is another network.
_RELATIVE = 1e-4


@dataclass(frozen=True)
class LayerTiming:
    """One Linear or Conv2d layer: what it keeps, how long it took, and what became of it.

    Attributes:
        name: of the layer in the model.
        kept: weights that are not zero.
        size: weights.
        dense: median seconds; None where it was not timed.
        sparse: likewise, as a CSR product.
        chosen: whether the exported network computes it as a CSR product.
        reason: why, or why not.
    """

    name: str
    kept: int
    size: int
    dense: float | None
    sparse: float | None
    chosen: bool
    reason: str


@dataclass(frozen=True)
class SparseReport:
    """What ``sparse`` chose, and the timings that decided it.

    Attributes:
        layers: every Linear and Conv2d layer.
        dense: median seconds of the dense network's forward pass.
        sparse: of the exported one; equal to ``dense`` where that is the dense one.
        threads: how many threads torch used.
    """

    layers: tuple[LayerTiming, ...]
    dense: float
    sparse: float
    threads: int

    @property
    def chosen(self) -> tuple[str, ...]:
        """The layers that are CSR products."""
        return tuple(layer.name for layer in self.layers if layer.chosen)

    def __str__(self) -> str:
        """Return the table."""
        width = max([len("layer"), *(len(layer.name) for layer in self.layers)])
        lines = [f"{'layer':<{width}}{'kept':>9}{'dense ms':>11}{'CSR ms':>11}  "]
        for layer in self.layers:
            times = "".join(
                f"{'-' if seconds is None else format(1e3 * seconds, '.3f'):>11}"
                for seconds in (layer.dense, layer.sparse)
            )
            share = layer.kept / max(1, layer.size)
            lines.append(f"{layer.name:<{width}}{share:>9.2%}{times}  {layer.reason}")
        lines.append(
            f"network: dense {1e3 * self.dense:.3f} ms, exported {1e3 * self.sparse:.3f} ms, "
            f"{self.dense / self.sparse:.2f}x, {len(self.chosen)} of {len(self.layers)} layers in "
            f"CSR, {self.threads} thread{'s' * (self.threads != 1)}"
        )
        return "\n".join(lines)


def sparse(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]
) -> tuple[nn.Module, SparseReport]:
    """Return a copy for inference on this machine's CPU, faster where zeros make it so.

    Each heavily pruned Linear and Conv2d layer is timed on the inputs it gets, dense and as a CSR
    product, in turns; CSR is taken where the median is below .9 of the dense one's. The whole
    network is timed likewise, and stays dense unless the exported one takes less than .97 of the
    time. The choice holds for inputs of this shape and this number of threads.

    Args:
        model: a finalized network on the CPU; it is left as it is.
        example_inputs: what one forward pass takes, with the batch size of the deployment.

    Returns:
        The copy, in evaluation mode, and what was chosen with the timings. Its outputs equal the
        dense network's to rounding: 1e-4 of their range is checked. So are the gradients of its
        inputs, to .01 of their length; where they differ the copy stays dense.

    Raises:
        TypeError: if the model is no nn.Module, or its output no tensor.
        ValueError: if a pruner is attached, or the network is not on the CPU or cannot be copied.

    >>> from robust_plugin import MagnitudePruner
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> MagnitudePruner(model, density=0.05).finalize()
    >>> x = torch.rand(2, 64)
    >>> fast, report = sparse(model, x)
    >>> torch.allclose(fast(x), model(x), atol=1e-5), [layer.kept for layer in report.layers]
    (True, [205, 32])
    """
    _refuse(model)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    plain = copied(model).eval().requires_grad_(False)
    with torch.no_grad():
        expected = plain(*inputs)
        if not isinstance(expected, Tensor):
            raise TypeError(
                f"the network returns a {type(expected).__name__}; wrap it in a module that "
                "returns a tensor."
            )
        given = _layer_inputs(plain, inputs)
        trials = {layer: _trial(name, layer, given[layer]) for layer, name in _layers(plain)}
        new: dict[nn.Module, nn.Module] = {
            layer: found for layer, (_, found) in trials.items() if found is not None
        }
        exported = with_layers(plain, new)
        against, dense, csr = _whole(plain, exported, inputs, expected)
    timings = [timing for timing, _ in trials.values()]
    if against or not new:
        exported, csr = plain, dense
        timings = [replace(t, chosen=False, reason=against) if t.chosen else t for t in timings]
    return exported, SparseReport(tuple(timings), dense, csr, torch.get_num_threads())


def _refuse(model: nn.Module) -> None:
    refuse_fixed(model)
    if next(masked_weights(model), None) is not None:
        raise ValueError("a pruner is attached to the network; call pruner.finalize() first.")
    elsewhere = [name for name, p in model.named_parameters() if p.device.type != "cpu"]
    if elsewhere:
        raise ValueError(
            f"{elsewhere[0]} is not on the CPU; call model.cpu() first, or take semi_structured, "
            "which is for CUDA."
        )


def _layers(model: nn.Module) -> list[tuple[nn.Linear | nn.Conv2d, str]]:
    return [
        (layer, name)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def _layer_inputs(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> dict[nn.Linear | nn.Conv2d, list[Tensor]]:
    """Run the model once and keep what each layer is called with."""
    given: dict[nn.Linear | nn.Conv2d, list[Tensor]] = {layer: [] for layer, _ in _layers(model)}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: given[layer].extend(args[:1]))
        for layer in given
    ]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return given


def _trial(
    name: str, layer: nn.Linear | nn.Conv2d, inputs: list[Tensor]
) -> tuple[LayerTiming, SparseLayer | None]:
    """Time a layer dense and in CSR on all its inputs; return the CSR layer if that is faster."""
    kept, size = int(layer.weight.count_nonzero()), layer.weight.numel()
    untimed = LayerTiming(name, kept, size, None, None, False, "")
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return replace(untimed, reason=f"is a {type(layer).__name__}"), None
    if "forward" in vars(layer):
        return replace(untimed, reason="has a forward of its own"), None
    if not inputs:
        return replace(untimed, reason="was not called in the forward pass"), None
    if kept > _MOST_KEPT * size:
        return replace(untimed, reason=f"keeps more than {_MOST_KEPT:.0%}"), None
    candidate: SparseLinear | SparseConv2d
    if isinstance(layer, nn.Linear):
        candidate = SparseLinear.of(layer)
    else:
        candidate = SparseConv2d.of(layer)
        largest = max(candidate.unfolded_bytes(x) for x in inputs)
        if largest > _MOST_BYTES:
            return replace(untimed, reason=f"would unfold to {largest / 2**20:.0f} MiB"), None
    try:
        found = [candidate(x) for x in inputs]
    except (RuntimeError, NotImplementedError) as error:
        # No MKL, or a type of numbers that it does not multiply: bfloat16, float16.
        return replace(untimed, reason=f"torch: {str(error).splitlines()[0]}"), None
    if not all(_close(layer(x), y) for x, y in zip(inputs, found, strict=True)):
        return replace(untimed, reason="differs from the dense layer"), None
    dense, csr = alternating(
        lambda: [layer(x) for x in inputs], lambda: [candidate(x) for x in inputs], seconds=0.2
    )
    timing = replace(untimed, dense=dense, sparse=csr)
    if csr > _CLEARLY * dense:
        return replace(timing, reason="not clearly faster"), None
    return replace(timing, chosen=True, reason=f"{dense / csr:.1f}x"), candidate


def _whole(
    plain: nn.Module, exported: nn.Module, inputs: tuple[Tensor, ...], expected: Tensor
) -> tuple[str, float, float]:
    """Return what speaks against the exported network, or "", and both networks' seconds."""
    try:
        found = exported(*inputs)
    except Exception as error:  # A parent may read its layer's weight instead of calling it.
        seconds, _ = alternating(lambda: plain(*inputs), lambda: None, seconds=0.5)
        return f"the network does not run with it: {error}", seconds, seconds
    dense, csr = alternating(lambda: plain(*inputs), lambda: exported(*inputs), seconds=1.0)
    if not _close(expected, found):
        return "the network's outputs differ with it", dense, csr
    if not same_gradients(plain, exported, inputs):
        return "the gradients of the network's inputs differ with it", dense, csr
    if csr > _NETWORK * dense:
        return f"the whole network was not faster: {dense / csr:.2f}x", dense, csr
    return "", dense, csr


def _close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    return bool(((expected - found).abs() <= _RELATIVE * expected.abs().amax()).all())
