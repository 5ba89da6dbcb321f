"""The sparsity of a model: how many weights each layer keeps, and which parameters stay dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from robust_plugin.budget.costs import multiply_adds
from robust_plugin.masks.masked_layer import is_of_masks
from robust_plugin.masks.prunable import prunable_members, refuse_fixed
from robust_plugin.masks.transformed import keeps_zeros
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.plots import bars
from robust_plugin.runtime.tables import html_lines, html_table, table


@dataclass(frozen=True)
class LayerSparsity:
    """The sparsity of one weight tensor that a pruner can mask.

    Attributes:
        name: name of the parameter in the dense network.
        shape: shape of the tensor.
        size: number of its weights.
        kept: number of its weights that are not zero.
        multiply_adds: number of multiply-adds for one example in which each single weight is used;
            0 if these were not counted, or the forward pass did not run the layer.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int
    multiply_adds: int


@dataclass(frozen=True)
class Sparsity:
    """The sparsity of every weight tensor that a pruner can mask, and the tensors that it cannot.

    Attributes:
        layers: sparsity of each prunable weight tensor.
        parameters: number of parameters of the whole model, including biases and normalisation
            layers.
        uncovered: name and number of parameters of each tensor of two or more dimensions that no
            pruner can mask.
        transformed: names of weight tensors that count as dense although they hold zeros, because
            their layer transforms them before use (standardises them, say).
    """

    layers: tuple[LayerSparsity, ...]
    parameters: int
    uncovered: tuple[tuple[str, int], ...]
    transformed: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """The number of prunable weights that are not zero."""
        return sum(layer.kept for layer in self.layers)

    @property
    def size(self) -> int:
        """The number of prunable weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def density(self) -> float:
        """The share of the prunable weights that is not zero."""
        return self.kept / self.size

    def __repr__(self) -> str:
        """Return one line: the number of tensors, and how many of their weights are kept."""
        return (
            f"Sparsity({len(self.layers)} weight tensors, kept {self.kept:,} of {self.size:,}: "
            f"{self.density:.2%})"
        )

    def _repr_html_(self) -> str:
        """Return the table of ``str`` in HTML for notebooks."""
        return f"{html_table(self._rows(), align='<<>>>')}\n{html_lines(self._summary())}"

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the share of its weights that each layer keeps, in per cent, as bars.

        Args:
            ax: matplotlib axes to draw on; None for a new figure.

        Returns:
            tuple: matplotlib's figure and axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        shares = {layer.name: 100 * layer.kept / layer.size for layer in self.layers}
        return bars(shares, {}, ax, label=f"weights kept, %; {100 * self.density:.3g} % in all")

    def __str__(self) -> str:
        """Return a table with one line per prunable weight tensor, and a summary below it.

        The columns are its name, its shape, its kept weights, its density, and its share of the
        multiply-adds of all prunable weights before pruning ("-" if these were not counted).
        """
        return "\n".join([*table(self._rows(), align="<<>>>"), *self._summary()])

    def _rows(self) -> list[list[str]]:
        """Return the cells of the table, the header first."""
        total = sum(layer.multiply_adds * layer.size for layer in self.layers)
        rows = [["weight", "shape", "kept", "density", "MACs"]]
        for layer in self.layers:
            share = layer.kept / layer.size
            macs = f"{layer.multiply_adds * layer.size / total:.1%}" if total else "-"
            shape = "x".join(map(str, layer.shape))
            kept = f"{layer.kept:,}/{layer.size:,}"
            rows.append([layer.name, shape, kept, f"{share:.2%}", macs])
        return rows

    def _summary(self) -> list[str]:
        """Return the lines below the table."""
        total = sum(layer.multiply_adds * layer.size for layer in self.layers)
        left = sum(layer.multiply_adds * layer.kept for layer in self.layers)
        dense = self.parameters - self.size
        lines = [
            f"prunable weights {self.size:,} ({self.size / self.parameters:.1%} of "
            f"{self.parameters:,} parameters), kept {self.kept:,}: {self.density:.2%} of the "
            f"prunable, {(self.kept + dense) / self.parameters:.2%} of all"
            + (f", {left / total:.2%} of their multiply-adds" if total else "")
        ]
        if self.uncovered:
            names = ", ".join(f"{name} ({size:,})" for name, size in self.uncovered)
            lines.append(f"not covered, dense: {names}")
        if self.transformed:
            names = ", ".join(self.transformed)
            lines.append(f"computed with other weights than the zeros stored, dense: {names}")
        return lines


@explain_wrong_calls
def sparsity(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...] | None = None
) -> Sparsity:
    """Count the weights of a model that are not zero, with a pruner attached or finalized.

    If a layer transforms its weights before use, so that zeros become non-zeros (a standardised
    convolution, say), all its weights count as kept.

    Args:
        model: any model.
        example_inputs: inputs of one forward pass, to count multiply-adds too; None not to count
            them.

    Raises:
        TypeError: if the model is no nn.Module.
        ValueError: if the model has no prunable weight, or was made by TorchScript or torch.export.

    >>> from robust_plugin import MagnitudePruner
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> pruner = MagnitudePruner(model, density=0.25)
    >>> found = sparsity(model)
    >>> found.kept, found.size, [layer.kept for layer in found.layers]
    (10, 40, [8, 2])
    """
    refuse_fixed(model)
    macs: dict[tuple[str, str], int] = {}
    if example_inputs is not None:
        macs = multiply_adds(model, example_inputs)
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not is_of_masks(name)
    }
    # Keyed by the parameter: a tied weight is listed once, under its first name, with the
    # multiply-adds of all layers that use it.
    layers: dict[Tensor, LayerSparsity] = {}
    transformed: list[str] = []
    for member in prunable_members(model):
        weight = member.weight
        stored = parameters.get(member.name, weight)  # torch's prune computes it in a hook
        before = layers[stored].multiply_adds if stored in layers else 0
        kept = int(weight.count_nonzero())
        if kept < weight.numel() and keeps_zeros(member.layer) is False:
            transformed.append(member.name)
            kept = weight.numel()
        layers.setdefault(
            stored,
            LayerSparsity(
                member.name,
                tuple(weight.shape),
                weight.numel(),
                kept,
                0,
            ),
        )
        each = member.multiply_adds(macs) if macs else 0
        layers[stored] = replace(layers[stored], multiply_adds=before + each)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no prunable layer.")
    names = {parameter: name for name, parameter in reversed(parameters.items())}
    uncovered = tuple(
        (name, p.numel()) for p, name in reversed(names.items()) if p.dim() >= 2 and p not in layers
    )
    parameters_in_all = sum(p.numel() for p in names)
    return Sparsity(tuple(layers.values()), parameters_in_all, uncovered, tuple(transformed))
