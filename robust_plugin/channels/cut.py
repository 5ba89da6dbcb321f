"""Cut channels from a copy of a network, and check shapes, values and outputs of the result.

The caller passes the function that does the cutting; ``adapters/torch_pruning`` has one that calls
torch-pruning. This file checks that the smaller network is the one that the masks ask for, and
finds the groups of channels whose removal has the same effect as their mask.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from robust_plugin.channels.kept_entries import kept_entries, select
from robust_plugin.copies.agreement import Trial, doubled, outputs, relative_difference, trials
from robust_plugin.masks.groups import Group
from robust_plugin.runtime.calls import user_level
from robust_plugin.runtime.tolerances import MAGNIFIED_CHANNELS_POWER

# The removals in order, each as (layer name, True for output channels, indices of the removed
# channels).
History = Sequence[tuple[str, bool, Sequence[int]]]
# A function that removes the channels listed in a History from a network, in place. It also takes
# inputs of one forward pass, on which it may trace the network.
Replay = Callable[[nn.Module, tuple[Tensor, ...], History], None]

# Shares of the units that masks keep when the removal of groups is tried: an error may show at
# some shares only.
_SHARES = (0.5, 0.25, 0.9)


def cut(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    groups: Sequence[Group],
    masks: Sequence[Tensor],
    replay: Replay,
) -> tuple[nn.Module, History]:
    """Return a copy of a network without the masked units, and the list of removed channels.

    A unit is one channel, or several channels that can only be removed together.

    Args:
        model: a network without masks; it is not changed.
        inputs: inputs of one forward pass.
        groups: groups of channels.
        masks: one bool mask per group, with one element per unit; True for a unit that stays.
        replay: function ``replay(model, inputs, history)`` that removes the channels listed in
            ``history`` from ``model``, in place.

    Returns:
        The smaller network, and the removals in order, each as (layer name, True for output
        channels, indices of the removed channels).

    Raises:
        ValueError: if a parameter of the smaller network does not have the entries that the masks
            leave of it.
    """
    small = copy.deepcopy(model)
    history = []
    for group, mask in zip(groups, masks, strict=True):
        unit = group.producer.index
        kept = mask.flatten().cpu() if unit is None else mask.flatten().cpu()[unit]
        gone = (~kept).nonzero().flatten().tolist()
        if gone:
            history.append((group.producer.layer_name, True, gone))
    replay(small, inputs, history)
    stays = kept_entries(groups, masks)
    before = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        layer, _, key = name.rpartition(".")
        expected = select(before[name].detach(), stays.get((layer, key), {}))
        if expected.shape != parameter.shape or not torch.equal(expected, parameter):
            raise ValueError(
                f"{name} was left with shape {tuple(parameter.shape)} or other values, where the "
                f"masks ask for {tuple(expected.shape)}"
            )
    return small, tuple(history)


def removable(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    groups: Sequence[Group],
    refused: Mapping[str, str],
    replay: Replay,
) -> tuple[Group, ...]:
    """Return the groups whose removal has the same effect as masking them.

    Removing and masking are compared on a copy of the network with random parameters, with several
    masks, on the given inputs and on random ones, in evaluation and in training mode. The other
    groups are left out, with a warning.

    Args:
        model: a network without masks; it is not changed.
        inputs: inputs of one forward pass.
        groups: the groups to try.
        refused: reasons why other channels are in no group, by the name of the layer that computes
            them; the warning lists these reasons too.
        replay: function ``replay(model, inputs, history)`` that removes the channels listed in
            ``history`` from ``model``, in place.

    Raises:
        ValueError: if no group is left (the message has the reasons), or if each group can be
            removed alone, but not all of them together.
    """
    trial, inputs = doubled(_randomised(model), inputs)
    passes = trials(trial, inputs)
    evaluated = [each for each in passes if not each.training][-1]
    first, *others = _SHARES
    found, reasons = tuple(groups), dict[str, str]()
    for share, tried in [(first, each) for each in passes] + [(each, evaluated) for each in others]:
        wrong = partial(_wrong, trial, inputs, tried, share=share, replay=replay)
        if not found or (together := wrong(found)) is None:
            continue
        reasons |= _culprits(found, together, wrong)
        found = tuple(group for group in groups if group.name not in reasons)
        if found and (together := wrong(found)) is not None:
            raise ValueError(
                f"each group of {type(model).__name__} can be removed, but not all together: "
                f"{together}; name some of their producers in ignored."
            )
    dense = reasons | dict(refused)
    listed = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:4])
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no channels between two layers that can be removed"
            + (f" ({listed}; {len(dense)} in all)." if dense else " and are not ignored.")
        )
    if dense:
        warnings.warn(
            f"{len(found)} groups of channels; {len(dense)} others stay dense, such as those of "
            f"{listed}. Name these layers in ignored to turn this warning off.",
            stacklevel=user_level(),
        )
    return found


def _culprits(
    groups: Sequence[Group], reason: str, wrong: Callable[[Sequence[Group]], str | None]
) -> dict[str, str]:
    """Return why groups cannot be removed: the reason by the name of each such group.

    The list of groups is split in halves again and again, which needs few trials if few groups
    cannot be removed.

    Args:
        groups: groups that cannot be removed together.
        reason: why they cannot be removed together.
        wrong: function that takes groups and returns why they cannot be removed together, or None
            if they can.
    """
    if len(groups) == 1:
        return {groups[0].name: reason}
    half = len(groups) // 2
    found: dict[str, str] = {}
    for part in (groups[:half], groups[half:]):
        if (each := wrong(part)) is not None:
            found |= _culprits(part, each, wrong)
    return found


def _wrong(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    trial: Trial,
    groups: Sequence[Group],
    *,
    share: float,
    replay: Replay,
) -> str | None:
    """Return why units of the groups cannot be removed, or None if they can.

    They can be removed if the smaller network runs and has the outputs of the masked network. A
    unit is one channel, or several channels that can only be removed together.

    Args:
        model: a network without masks; it is not changed.
        inputs: inputs of one forward pass, on which ``replay`` may trace the network.
        trial: the forward pass on which the masked and the smaller network are compared.
        groups: the groups to remove units from.
        share: share of the units of each group that stay, in (0, 1]; they are chosen at random.
        replay: function ``replay(model, inputs, history)`` that removes the channels listed in
            ``history`` from ``model``, in place.
    """
    generator = torch.Generator().manual_seed(round(100 * share))
    masks = [
        torch.randperm(group.size, generator=generator) < max(1, int(share * group.size))
        for group in groups
    ]
    try:
        small, _ = cut(model, inputs, groups, masks, replay)
    except Exception as error:  # a network that was cut in the wrong place can raise any exception
        return f"they cannot be cut ({error})"
    mode = " in training mode" if trial.training else ""
    with _failing(small) as entered:
        try:
            found = outputs(small, trial)
        except Exception as error:
            return f"without them {entered[-1]} does not run{mode} ({error})"
    expected = outputs(_masked(model, groups, masks), trial)
    difference = relative_difference(expected, found)
    if difference > torch.finfo(expected[0].dtype).eps ** MAGNIFIED_CHANNELS_POWER:
        return (
            f"something between mixes the channels{mode}: their removal is not what their mask does"
        )
    return None


@contextmanager
def _failing(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that holds the names of the running layers, outermost first.

    After a forward pass that failed, the last name is that of the layer that failed.
    """
    entered = ["the network"]

    def enter(name: str, *_: object) -> None:
        entered.append(name)

    def leave(*_: object) -> None:
        entered.pop()

    hooks = []
    for name, layer in model.named_modules():
        if name:
            hooks.append(layer.register_forward_pre_hook(partial(enter, name)))
            hooks.append(layer.register_forward_hook(leave))
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def _masked(model: nn.Module, groups: Sequence[Group], masks: Sequence[Tensor]) -> nn.Module:
    """Return a copy of a network with zeros in all weights that read masked channels.

    Args:
        model: a network without masks; it is not changed.
        groups: groups of channels.
        masks: one bool mask per group, with one element per unit (a channel, or several that can
            only be removed together); False for a masked unit.
    """
    masked = copy.deepcopy(model)
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            weight = masked.get_parameter(member.name).data.movedim(cast(int, member.dim), 0)
            follows = torch.arange(group.size) if member.index is None else member.index
            weight[(follows >= 0) & ~mask[follows]] = 0
    return masked


def _randomised(model: nn.Module) -> nn.Module:
    """Return a copy of a network with random parameters and buffers.

    The parameters of norms and scales are often initialised to 0, 1 or 1e-6. Then a layer that
    mixes channels may have the same outputs as one that does not; with random values it has not.
    """
    trial = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*trial.named_parameters(), *trial.named_buffers()):
        if not tensor.is_floating_point():
            continue
        layer = trial.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and tensor.dim() > 1:
            value = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        else:
            value = 0.5 + torch.rand(tensor.shape, generator=generator)
        tensor.data.copy_(value)
    return trial
