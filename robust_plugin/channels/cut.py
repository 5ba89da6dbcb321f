"""Cutting channels from copies, checked on shapes, values and outputs.

How a network is cut is the host library's business (``adapters.torch_pruning``), given here as a
function that replays a history. Whether what it left is what masks ask for is decided here.
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

from robust_plugin.channels.entries import kept_entries, select
from robust_plugin.copies.agreement import Trial, doubled, outputs, relative_difference, trials
from robust_plugin.masks.groups import Group

# (layer, True for its output channels, the channels that go), in the order they went.
History = Sequence[tuple[str, bool, Sequence[int]]]
Replay = Callable[[nn.Module, tuple[Tensor, ...], History], None]

# What masks keep of each group when its removal is tried: what is wrong may show in some only.
_SHARES = (0.5, 0.25, 0.9)


def cut(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    groups: Sequence[Group],
    masks: Sequence[Tensor],
    replay: Replay,
) -> tuple[nn.Module, History]:
    """Return a copy of a plain network without the units that are masked, and its history.

    Raises:
        ValueError: if anything else is gone than what follows from the groups.
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
    """Return the groups whose removal, on a randomised copy, is what their mask does.

    Tried with several masks, on the given inputs and on random ones, in evaluation and in training
    mode. Others are left out with a warning.

    Args:
        model: without masks.
        inputs: of one forward pass.
        groups: those to try.
        refused: why channels are not among the groups, by the name of their producer.
        replay: cuts a plain network in place.

    Raises:
        ValueError: if none is left, with the reasons, or groups can be removed each, but not
            together.
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
            f"{listed}. Name these layers in ignored to say that you know.",
            stacklevel=3,
        )
    return found


def _culprits(
    groups: Sequence[Group], reason: str, wrong: Callable[[Sequence[Group]], str | None]
) -> dict[str, str]:
    """Return what is wrong with single groups, by halves: most networks have few, or none.

    Args:
        groups: those that cannot be removed together.
        reason: why not.
        wrong: tells that of fewer groups, None where nothing is wrong.
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
    """Keep a share of the units; say what is wrong with the network that is left, if anything."""
    generator = torch.Generator().manual_seed(round(100 * share))
    masks = [
        torch.randperm(group.size, generator=generator) < max(1, int(share * group.size))
        for group in groups
    ]
    try:
        small, _ = cut(model, inputs, groups, masks, replay)
    except Exception as error:  # a network cut in the wrong place fails in any way it likes
        return f"they cannot be cut ({error})"
    mode = " in training mode" if trial.training else ""
    with _failing(small) as entered:
        try:
            found = outputs(small, trial)
        except Exception as error:
            return f"without them {entered[-1]} does not run{mode} ({error})"
    expected = outputs(_masked(model, groups, masks), trial)
    difference = relative_difference(expected, found)
    if difference > torch.finfo(expected[0].dtype).eps ** 0.4:  # 5e-7 in float64
        return (
            f"something between mixes the channels{mode}: their removal is not what their mask does"
        )
    return None


@contextmanager
def _failing(model: nn.Module) -> Iterator[list[str]]:
    """Give a list whose last entry is the layer that runs, or where a pass has failed."""
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
    masked = copy.deepcopy(model)
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            weight = masked.get_parameter(member.name).data.movedim(cast(int, member.dim), 0)
            follows = torch.arange(group.size) if member.index is None else member.index
            weight[(follows >= 0) & ~mask[follows]] = 0
    return masked


def _randomised(model: nn.Module) -> nn.Module:
    """Return a copy with values that hide nothing.

    Norms and scales start at 0, 1 or 1e-6, where many a mixing of channels does not show.
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
