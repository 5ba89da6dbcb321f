"""Groups: the parameters that share one mask, with one score tensor and one density.

A ``Group`` lists the parameters that its mask covers, its members. If single weights are pruned,
that is one weight tensor, or several tied ones. If channels are pruned, it is the weights of all
layers that read the same channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust_plugin.masks.masked_layer import present_weight
from robust_plugin.runtime.tables import listed


@dataclass(frozen=True)
class Member:
    """One parameter that the mask of a group covers.

    Attributes:
        layer: module that holds the parameter.
        layer_name: name of the module in the model.
        parameter: name of the parameter in the module.
        dim: dimension of the parameter along which the mask selects channels (1 for the input
            channels of a layer); None if the mask has the shape of the parameter.
        index: for each position along ``dim``, the index of the channel in the group's mask that
            masks it, or -1 for no mask (behind a concatenation another group may mask it), shape
            [length of ``dim``]; None if position i is masked by channel i.
    """

    layer: nn.Module
    layer_name: str
    parameter: str
    dim: int | None = None
    index: Tensor | None = None

    def __repr__(self) -> str:
        """Return one line: the name of the parameter, and the dimension that is masked."""
        return f"Member({self.name!r}" + ("" if self.dim is None else f", dim={self.dim}") + ")"

    @property
    def name(self) -> str:
        """The name of the parameter in the state_dict of the model without masks."""
        return f"{self.layer_name}.{self.parameter}" if self.layer_name else self.parameter

    @property
    def weight(self) -> Tensor:
        """The parameter as the model computes with it, times its mask if it has one, detached."""
        with torch.no_grad():  # also before the optimizer is followed, when training is refused
            return present_weight(self.layer, self.parameter).detach()

    def multiply_adds(self, macs: Mapping[tuple[str, str], int]) -> int:
        """Return the number of multiply-adds in which each single weight of this parameter is used.

        It is looked up in ``macs``, and 0 if the parameter is not there, because the forward pass
        that was counted did not run its layer. The query, key and value projections of an attention
        layer have one number in common.

        Args:
            macs: multiply-adds per weight for one example, by (layer name, parameter name), as
                ``multiply_adds`` of ``budget/costs.py`` returns them.
        """
        separate = self.parameter in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        return macs.get((self.layer_name, "in_proj_weight" if separate else self.parameter), 0)


@dataclass(frozen=True)
class Group:
    """Parameters that share one mask: a weight, tied weights, or all weights that read channels.

    Attributes:
        members: parameters that the mask covers; a single one for a plain weight.
        channels: number of channels, if the mask selects channels; None if it selects weights.
        name: name of the group; "" stands for the name of the first member.
        coupled: parameters that the mask does not cover, but which become smaller when the channels
            are removed: the filters and biases that compute the channels, and the normalisation
            layers in between. If they are given, the budget counts the cost of the network that
            remains.
    """

    members: tuple[Member, ...]
    channels: int | None = None
    name: str = field(default="")
    coupled: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("a group needs at least one member.")
        if any((member.dim is None) != (self.channels is None) for member in self.members):
            raise ValueError(
                f"group {self.members[0].name}: members have a dim exactly where the group has "
                "a number of channels."
            )
        if not self.name:
            object.__setattr__(self, "name", self.members[0].name)

    def __repr__(self) -> str:
        """Return one line: the name, the size, and the number of parameters that share the mask."""
        kind = "weights" if self.channels is None else "channels"
        more = len(self.members) - 1
        shared = f", {1 + more} members" if more else ""
        return f"Group({listed([repr(self.name)])}, {self.size:,} {kind}{shared})"

    @property
    def size(self) -> int:
        """The number of weights or channels that the mask selects from."""
        return self.channels or self.members[0].weight.numel()

    @property
    def producer(self) -> Member:
        """The convolution or linear weight whose filters compute the channels of this group.

        It is the weight in ``coupled`` that the group is named after. If the user chose another
        name, it is the first weight of a convolution or linear layer in ``coupled`` that computes
        all channels.

        Raises:
            ValueError: if no convolution or linear layer in ``coupled`` computes all channels.
        """
        filters = [
            m
            for m in self.coupled
            if isinstance(m.layer, nn.Linear | nn.modules.conv._ConvNd)
            and m.parameter == "weight"
            and (m.index is None or bool((m.index >= 0).all()))
        ]
        named = [m for m in self.coupled if m.name == f"{self.name}.weight"]
        if not (named or filters):
            raise ValueError(
                f"group {self.name}: no convolution or linear layer among what is coupled makes "
                "its channels; take the groups of channel_groups(model, x[:1])."
            )
        return (named or filters)[0]

    @property
    def magnitudes(self) -> Tensor:
        """The values that initial scores are computed from.

        For weights this is the weight tensor itself, with signs. For channels it is the L2 norm of
        each channel over the weights of all members, shape [channels, 1].
        """
        if self.channels is None:
            return self.members[0].weight
        squares = torch.zeros(self.channels, 1, device=self.members[0].weight.device)
        for member in self.members:
            rows = member.weight.movedim(member.dim or 0, 0).flatten(1).float()
            index = torch.arange(len(rows)) if member.index is None else member.index
            sums = rows.square().sum(1, keepdim=True)[(index >= 0).to(rows.device)]
            squares.index_add_(0, index[index >= 0].to(rows.device), sums)
        return squares.sqrt()

    def cost(self, macs: Mapping[tuple[str, str], int] | None) -> int:
        """Return the cost of keeping one weight or channel, in parameters or in multiply-adds.

        Args:
            macs: multiply-adds per weight for one example, by (layer name, parameter name), for a
                cost in multiply-adds; None for a cost in parameters.

        Raises:
            ValueError: if ``macs`` has no count for a member, because the forward pass that was
                counted did not run its layer.
        """
        total = 0
        for member in self.members:
            entries = 1 if self.channels is None else member.weight.numel() // self.channels
            positions = 1 if macs is None else member.multiply_adds(macs)
            if not positions:
                raise ValueError(
                    f"{member.name} did not run in the forward pass that counts FLOPs; exclude it, "
                    "or give example_inputs that reach it."
                )
            total += entries * positions
            if self.channels is None and macs is None:
                break  # Tied weights are stored once, but every member computes with them.
        return total


class Groups(tuple[Group, ...]):
    """Tuple of groups of channels that also holds the inputs that were traced to find them.

    A pruner with these groups uses the inputs to count FLOPs, so the user gives them only once.

    Args:
        groups: the groups.
        example_inputs: inputs of one forward pass of the network.
    """

    example_inputs: tuple[Tensor, ...]

    def __new__(cls, groups: Iterable[Group], example_inputs: tuple[Tensor, ...]) -> Groups:
        """Return the tuple of the groups, with ``example_inputs`` as attribute."""
        made = super().__new__(cls, groups)
        made.example_inputs = example_inputs
        return made

    def __repr__(self) -> str:
        """Return one line: the number of groups, and the first ones by name."""
        shown = [f"{group.name} ({group.size})" for group in self]
        return f"Groups({len(self)} groups: {listed(shown)})"

    def __getnewargs__(self) -> tuple[tuple[Group, ...], tuple[Tensor, ...]]:
        """Return the arguments that copying and unpickling pass to ``__new__``."""
        return tuple(self), self.example_inputs
