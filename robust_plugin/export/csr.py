"""Deployment on a CPU: a copy of a network with CSR layers where they are measured to be faster.

CSR is compressed sparse row, a format of sparse matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robust_plugin.copies.agreement import run, same_gradients
from robust_plugin.copies.deep_copy import copied
from robust_plugin.export.csr_layers import SparseConv2d, SparseLayer, SparseLinear
from robust_plugin.export.replace_layers import with_layers
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.prunable import refuse_fixed
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.tables import html_lines, html_table, table
from robust_plugin.runtime.timing import alternating
from robust_plugin.runtime.tolerances import SPARSE_OUTPUTS

# Layers that keep more than this share of their weights are not timed. A Linear layer that keeps
# half of them is slower in CSR on every machine tried.
_MOST_KEPT = 0.3
# On a busy machine two timings of the same thing differ. So a CSR layer must take less than this
# share of the time of the dense layer,
_CLEARLY = 0.9
# and the exported network less than this share of the time of the dense network.
_NETWORK = 0.97
# The largest size of one unfolded example of a convolution, in bytes.
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LayerTiming:
    """One Linear or Conv2d layer: its number of kept weights, its timings, and what was chosen.

    Attributes:
        name: name of the layer in the model.
        kept: number of weights that are not zero.
        size: number of weights.
        dense: median seconds of the dense layer on its inputs of one forward pass of the network;
            None if the layer was not timed.
        sparse: the same for the layer with a CSR weight.
        chosen: whether the layer has a CSR weight in the exported network.
        reason: why the layer stays dense; for a chosen layer the speed-up, such as ``"2.1x"``.
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
    """Which layers got a CSR weight, and the timings that decided it.

    Attributes:
        layers: choice and timings of every Linear and Conv2d layer of the network.
        dense: median seconds of a forward pass of the dense network.
        sparse: median seconds of a forward pass of the exported network; equal to ``dense`` if
            every layer stays dense.
        threads: number of threads that torch used.
    """

    layers: tuple[LayerTiming, ...]
    dense: float
    sparse: float
    threads: int

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of the layers that have a CSR weight in the exported network."""
        return tuple(layer.name for layer in self.layers if layer.chosen)

    def __repr__(self) -> str:
        """Return one line: how many layers have a CSR weight, and the speed-up of the network."""
        return (
            f"SparseReport({len(self.chosen)} of {len(self.layers)} layers in CSR, "
            f"{self.dense / self.sparse:.2f}x)"
        )

    def _repr_html_(self) -> str:
        """Return the table of ``str`` in HTML for notebooks."""
        return f"{html_table(self._rows(), align='<>>><')}\n{html_lines([self._summary()])}"

    def __str__(self) -> str:
        """Return a table with one line per layer, and a line for the whole network below it.

        The columns are the layer's name, the share of weights that it keeps, the median
        milliseconds of the dense and of the CSR layer, and the reason of the choice.
        """
        return "\n".join([*table(self._rows(), align="<>>><"), self._summary()])

    def _rows(self) -> list[list[str]]:
        """Return the cells of the table, the header first."""
        rows = [["layer", "kept", "dense ms", "CSR ms"]]
        for layer in self.layers:
            times = [
                "-" if seconds is None else f"{1e3 * seconds:.3f}"
                for seconds in (layer.dense, layer.sparse)
            ]
            share = layer.kept / max(1, layer.size)
            rows.append([layer.name, f"{share:.2%}", *times, layer.reason])
        return rows

    def _summary(self) -> str:
        """Return the line for the whole network."""
        return (
            f"network: dense {1e3 * self.dense:.3f} ms, exported {1e3 * self.sparse:.3f} ms, "
            f"{self.dense / self.sparse:.2f}x, {len(self.chosen)} of {len(self.layers)} layers in "
            f"CSR, {self.threads} thread{'s' * (self.threads != 1)}"
        )


@explain_wrong_calls
def sparse(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]
) -> tuple[nn.Module, SparseReport]:
    """Return a copy for inference on this machine's CPU, with CSR layers where they are faster.

    Each Linear and Conv2d layer that keeps at most 30 % of its weights is timed on the inputs that
    it gets, alternately with its dense weight and with a CSR (compressed sparse row) weight. The
    CSR weight is chosen if its median time is at most 0.9 of the dense layer's. Then the dense and
    the exported network are timed alternately, and every layer stays dense unless the exported
    network takes at most 0.97 of the dense network's time. The choice is valid for inputs of this
    shape and for this number of threads.

    Args:
        model: a finalized network on the CPU; it is not changed.
        example_inputs: inputs of one forward pass, with the batch size of the deployment.

    Returns:
        The copy, in evaluation mode, and the report with choices and timings. Every layer stays
        dense if outputs of the copy differ from those of the dense network by more than 1e-4 of the
        largest absolute output, or the gradients with respect to the inputs by more than 0.01 of
        their L2 norm.

    Raises:
        TypeError: if the model is no nn.Module, or its output is no tensor.
        ValueError: if a pruner is attached, the network is not on the CPU, or it cannot be copied.

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
    if not all(isinstance(each, Tensor) for each in inputs):
        raise TypeError(f"example_inputs is a {type(example_inputs).__name__}; give tensors.")
    with torch.no_grad():
        try:
            expected = plain(*inputs)
        except (RuntimeError, IndexError, ValueError, TypeError):
            run(plain, inputs)  # raises an error that names the shapes
            raise
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
    """Return the inputs of each Linear and Conv2d layer in one forward pass, one tensor per call.

    Args:
        model: the network.
        inputs: inputs of the forward pass of the network.
    """
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
    """Time a layer with its dense weight and with a CSR weight.

    Args:
        name: name of the layer in the model.
        layer: the dense layer.
        inputs: the inputs of the layer in one forward pass of the network, one tensor per call.

    Returns:
        The timings with the choice, and the layer with a CSR weight; None in its place if the layer
        stays dense.
    """
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
        # There is no MKL, or it does not support the dtype: bfloat16 and float16.
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
    """Compare the exported network to the dense one: outputs, input gradients and time.

    Args:
        plain: the dense network.
        exported: the network with CSR layers.
        inputs: inputs of one forward pass.
        expected: the dense network's output on ``inputs``.

    Returns:
        Why every layer should stay dense ("" if the exported network is correct and faster), and
        the median seconds of a forward pass of the dense and of the exported network. If the
        exported network does not run, both are those of the dense one.
    """
    try:
        found = exported(*inputs)
    except Exception as error:  # A module may read the weight of a layer instead of calling it.
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
    return bool(((expected - found).abs() <= SPARSE_OUTPUTS * expected.abs().amax()).all())
