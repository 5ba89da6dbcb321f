"""Remove the channels that a pruner has masked; save and load the smaller network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.budget.costs import total_multiply_adds
from robust_plugin.channels.cut import History, Replay, cut
from robust_plugin.copies.agreement import Trial, doubled, outputs, relative_difference, run, trials
from robust_plugin.copies.deep_copy import copied
from robust_plugin.masks.detach import finalize
from robust_plugin.masks.group_checks import check_channels, check_groups
from robust_plugin.masks.prunable import refuse_masked
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.files import read_tensors, write_tensors
from robust_plugin.runtime.progress import ProgressOption, Show, reporting
from robust_plugin.runtime.tables import html_lines, html_table, table
from robust_plugin.runtime.tolerances import MAGNIFIED_CHANNELS_POWER, REMOVED_CHANNELS_POWER


@dataclass(frozen=True)
class Removed:
    """A network without the channels that a pruner has masked.

    Attributes:
        model: the smaller network; ``requires_grad`` and the training flags are those of the large
            one.
        history: the removals in order, each as (layer name, True for output channels, indices of
            the removed channels); JSON can hold this list.
        counts: number of units that each group keeps, by group name; a unit is one channel, or
            several channels that can only be removed together.
        multiply_adds: multiply-adds of one example, before and after the removal.
        parameters: number of parameters, before and after the removal.
        difference: largest absolute difference between the outputs of the smaller and the masked
            network, divided by the largest absolute output, in evaluation mode, on the given and
            on random inputs.
    """

    model: nn.Module
    history: History
    counts: Mapping[str, int]
    multiply_adds: tuple[int, int]
    parameters: tuple[int, int]
    difference: float

    def __repr__(self) -> str:
        """Return one line: parameters and multiply-adds before and after, and the difference."""
        sizes = [
            f"{name} {before:,} -> {after:,}"
            for name, (before, after) in (
                ("parameters", self.parameters),
                ("multiply-adds", self.multiply_adds),
            )
        ]
        return (
            f"Removed({len(self.counts)} groups, {', '.join(sizes)}, outputs within "
            f"{self.difference:.1e})"
        )

    def __str__(self) -> str:
        """Return a table of the channels that each group keeps, and the sizes below it."""
        return "\n".join([*table(self._rows(), align="<>"), repr(self)])

    def _repr_html_(self) -> str:
        """Return the table of ``str`` in HTML for notebooks."""
        return f"{html_table(self._rows(), align='<>')}\n{html_lines([repr(self)])}"

    def _rows(self) -> list[list[str]]:
        """Return the cells of the table, the header first."""
        return [["group", "kept"], *([name, f"{kept:,}"] for name, kept in self.counts.items())]


def remove(
    pruner: Pruner,
    inputs: tuple[Tensor, ...],
    replay: Replay,
    *,
    progress: ProgressOption = False,
) -> Removed:
    """Return a copy of the pruner's network without the masked channels.

    Args:
        pruner: a pruner with groups of channels that can be removed. Its numbers of kept channels
            must be final: a pruner that learns is in the finetune phase or finalized.
        inputs: inputs of one forward pass; on these and on random ones the outputs are compared.
        replay: function ``replay(model, inputs, history)`` that removes the channels listed in
            ``history`` from ``model``, in place.
        progress: False, True for a progress bar, or a function that takes a ``Progress``.

    Raises:
        ValueError: if the numbers of kept channels are not final, the groups are not groups of
            channels, or the smaller network does not compute what the masked one computes.
    """
    check_channels(pruner.groups)
    if pruner.learn and pruner.phase not in ("finetune", "finalized"):
        raise ValueError(
            f"the phase is {pruner.phase!r}, in which masks still move; call "
            "pruner.set_phase('finetune') first: from there on they are at the budget."
        )
    if pruner.phase == "finalized":
        refuse_masked(pruner.model)
        check_groups(pruner.model, pruner.groups)
    plain = copied(pruner.model)
    masked = copy.deepcopy(pruner.model)
    with exact(inputs[0]):
        run(copy.deepcopy(masked), inputs)
        passes = trials(masked, inputs)
    if pruner.phase != "finalized":
        finalize(plain)
    with reporting(progress, "remove channels", total=1 + len(passes), unit="steps") as show:
        small, history = cut(plain, inputs, pruner.groups, [m.mask for m in pruner.masks], replay)
        show(1)
        with exact(inputs[0]):
            difference = _compared(masked, small, passes, show)
    return Removed(
        small,
        history,
        {g.name: int(mask.kept) for g, mask in zip(pruner.groups, pruner.masks, strict=True)},
        (total_multiply_adds(plain, inputs), total_multiply_adds(small, inputs)),
        (_parameters(plain), _parameters(small)),
        difference,
    )


def _compared(masked: nn.Module, small: nn.Module, passes: Sequence[Trial], show: Show) -> float:
    """Return the largest relative difference between the outputs in evaluation mode.

    The outputs in training mode are checked too, in float64, because the statistics of small
    batches magnify rounding errors.

    Args:
        masked: the network with masks.
        small: the network without the masked channels.
        passes: the inputs and modes in which the networks are compared.
        show: function that is told after each comparison how many steps of the removal are done.

    Raises:
        ValueError: if the difference is larger than rounding errors, in either mode.
    """
    worst = 0.0
    for number, trial in enumerate(passes, 1):
        one, other, used = masked, small, trial.inputs
        if trial.training:
            (one, used), (other, _) = doubled(masked, used), doubled(small, used)
        expected, found = (
            outputs(copy.deepcopy(each), Trial(used, trial.training)) for each in (one, other)
        )
        difference = relative_difference(expected, found)
        power = MAGNIFIED_CHANNELS_POWER if trial.training else REMOVED_CHANNELS_POWER
        allowed = torch.finfo(expected[0].dtype).eps ** power
        if difference > allowed:
            mode = "training" if trial.training else "evaluation"
            raise ValueError(
                f"the network without the channels differs from the masked one by {difference:.2g} "
                f"of its largest output in {mode} mode. Either it was trained on after finalize, "
                "when nothing holds pruned weights at zero: remove the channels before that. Or a "
                "layer mixes the channels: name the layers that make them in ignored."
            )
        worst = worst if trial.training else max(worst, difference)
        show(1 + number)
    return worst


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@explain_wrong_calls
def save(path: str | Path, removed: Removed) -> None:
    """Write a smaller network to one safetensors file: the list of removals and its state_dict.

    Args:
        path: the file; its folder must exist.
        removed: the result of ``remove_channels``.

    Raises:
        ValueError: if the folder of the file does not exist.
    """
    write_tensors(path, removed.model.state_dict(), {"history": removed.history})


def load_into(
    path: str | Path, model: nn.Module, inputs: tuple[Tensor, ...], replay: Replay
) -> nn.Module:
    """Return the smaller network of a file, made by cutting a copy of the large network.

    Args:
        path: a file that ``save`` wrote.
        model: the large network, without masks; it is not changed.
        inputs: inputs of one forward pass, on which ``replay`` may trace the network.
        replay: function ``replay(model, inputs, history)`` that removes the channels listed in
            ``history`` from ``model``, in place.

    Raises:
        ValueError: for a file that ``save`` did not write, or a network of another architecture or
            dtype.
    """
    path = Path(path)
    tensors, content = read_tensors(path)
    history: History | None = content.get("history")
    if history is None:
        raise ValueError(f"{path} holds no removed channels; give a file that save wrote.")
    refuse_masked(model)
    unknown = {name for name, _, _ in history} - dict(model.named_modules()).keys()
    if unknown:
        raise ValueError(f"{path} cuts {min(unknown)}, which {type(model).__name__} has not.")
    small = copied(model)
    replay(small, inputs, history)
    state = small.state_dict()
    for name in sorted(state.keys() | tensors.keys()):
        ours, theirs = (_form(each.get(name)) for each in (state, tensors))
        if ours != theirs:
            raise ValueError(f"{path} is of another network: {name} is {theirs}, here {ours}.")
    small.load_state_dict(tensors)
    return small


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
