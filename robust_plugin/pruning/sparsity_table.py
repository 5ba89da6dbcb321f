"""What is pruned: a table by layer, and what no mask covers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from robust_plugin.budget.costs import multiply_adds
from robust_plugin.masks.detach import dense_names
from robust_plugin.masks.prunable import prunable_members, refuse_fixed
from robust_plugin.masks.transformed import keeps_zeros


@dataclass(frozen=True)
class LayerSparsity:
    """One prunable weight: how many of its entries are not zero, and what they compute.

    ``multiply_adds`` is of one dense entry and one example; 0 where nothing was traced.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int
    multiply_adds: int


@dataclass(frozen=True)
class Sparsity:
    """Every prunable weight of a model, and the matrices that no pruner covers.

    Attributes:
        layers: the prunable weights.
        parameters: of the whole model, biases and norms included.
        uncovered: other parameters of two or more dimensions, by name, with their sizes.
        transformed: weights with zeros of which the layer makes other weights (it standardises
            them, say), so that they count as dense.
    """

    layers: tuple[LayerSparsity, ...]
    parameters: int
    uncovered: tuple[tuple[str, int], ...]
    transformed: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Prunable weights that are not zero."""
        return sum(layer.kept for layer in self.layers)

    @property
    def size(self) -> int:
        """Prunable weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def density(self) -> float:
        """The share of the prunable weights that is kept."""
        return self.kept / self.size

    def __str__(self) -> str:
        """Return the table."""
        total = sum(layer.multiply_adds * layer.size for layer in self.layers)
        left = sum(layer.multiply_adds * layer.kept for layer in self.layers)
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'weight':<{width}}  {'shape':<18}{'kept':>22}{'density':>9}{'MACs':>9}"]
        for layer in self.layers:
            share = layer.kept / layer.size
            macs = f"{layer.multiply_adds * layer.size / total:.1%}" if total else "-"
            lines.append(
                f"{layer.name:<{width}}  {'x'.join(map(str, layer.shape)):<18}"
                f"{layer.kept:>11,}/{layer.size:<10,}{share:>9.2%}{macs:>9}"
            )
        dense = self.parameters - self.size
        lines.append(
            f"prunable weights {self.size:,} ({self.size / self.parameters:.1%} of "
            f"{self.parameters:,} parameters), kept {self.kept:,}: {self.density:.2%} of the "
            f"prunable, {(self.kept + dense) / self.parameters:.2%} of all"
            + (f", {left / total:.2%} of their multiply-adds" if total else "")
        )
        if self.uncovered:
            names = ", ".join(f"{name} ({size:,})" for name, size in self.uncovered)
            lines.append(f"not covered, dense: {names}")
        if self.transformed:
            names = ", ".join(self.transformed)
            lines.append(f"computed with other weights than the zeros stored, dense: {names}")
        return "\n".join(lines)


def sparsity(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...] | None = None
) -> Sparsity:
    """Count what a model keeps, while a pruner is attached or after it was finalized.

    A layer that makes other weights of its zeros, such as a standardised convolution, keeps all.

    Args:
        model: any model.
        example_inputs: what one forward pass takes; then multiply-adds are counted too.

    Raises:
        TypeError: if it is no nn.Module.
        ValueError: if the model has no prunable weight.

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
    own = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name: own[under] for name, under in dense_names(model).items() if under in own}
    # By the parameter: a tied weight is stored once, under its first name, and works for all.
    layers: dict[Tensor, LayerSparsity] = {}
    transformed: list[str] = []
    for member in prunable_members(model):
        weight = member.weight
        stored = parameters.get(member.name, weight)  # torch's own prune makes it in a hook
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
