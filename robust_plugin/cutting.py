"""Cutting channels from copies, checked on shapes, values and outputs.

How a network is cut is the host library's business (``adapters.torch_pruning``), given here as a
function that replays a history. Whether what it left is what masks ask for is decided here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from robust_plugin.channels import kept_entries, select
from robust_plugin.groups import Group

# (layer, True for its output channels, the channels that go), in the order they went.
History = Sequence[tuple[str, bool, Sequence[int]]]
Replay = Callable[[nn.Module, tuple[Tensor, ...], History], None]


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

    Others are left out with a warning.

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
    trial, inputs = _randomised(model, inputs)
    reasons: dict[str, str | None] = {}
    if groups and _wrong(trial, inputs, groups, replay) is not None:
        reasons = {group.name: _wrong(trial, inputs, [group], replay) for group in groups}
    found = tuple(group for group in groups if reasons.get(group.name) is None)
    if reasons and found and (together := _wrong(trial, inputs, found, replay)) is not None:
        raise ValueError(
            f"each group of {type(model).__name__} can be removed, but not all together: "
            f"{together}; name some of their producers in ignored."
        )
    dense = {name: reason for name, reason in reasons.items() if reason is not None} | dict(refused)
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


def _wrong(
    model: nn.Module, inputs: tuple[Tensor, ...], groups: Sequence[Group], replay: Replay
) -> str | None:
    """Remove half of the units; say what is wrong with the network that is left, if anything."""
    generator = torch.Generator().manual_seed(0)
    masks = [torch.randperm(group.size, generator=generator) < group.size // 2 for group in groups]
    try:
        small, _ = cut(model, inputs, groups, masks, replay)
        expected = outputs(_masked(model, groups, masks), inputs)
        difference = relative_difference(expected, outputs(small, inputs))
    except Exception as error:  # a network cut in the wrong place fails in any way it likes
        return f"without them the network does not run ({error})"
    if difference > torch.finfo(expected[0].dtype).eps ** 0.4:  # 5e-7 in float64
        return "something between mixes the channels: their removal is not what their mask does"
    return None


def _masked(model: nn.Module, groups: Sequence[Group], masks: Sequence[Tensor]) -> nn.Module:
    masked = copy.deepcopy(model)
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            weight = masked.get_parameter(member.name).data.movedim(cast(int, member.dim), 0)
            follows = torch.arange(group.size) if member.index is None else member.index
            weight[(follows >= 0) & ~mask[follows]] = 0
    return masked


def _randomised(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a copy, in float64 if it runs, with values that hide nothing.

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
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:
        double = copy.deepcopy(trial).double()
        outputs(double, doubled)
    except Exception:  # a forward that fixes its dtype, a device without float64
        return trial, inputs
    return double, doubled


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return ``outputs``, or say that the inputs are not what the forward takes.

    Raises:
        ValueError: with the forward's own error, or if it returns nothing to compare.
    """
    try:
        out = outputs(model, inputs)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run on example_inputs of shapes "
            f"{[tuple(x.shape) for x in inputs]}; give what its forward takes, several inputs as "
            f"a tuple: {error}"
        ) from error
    if not out:
        raise ValueError(
            f"{type(model).__name__} returns no floating-point tensors, bare or in tuples, lists "
            "and dicts; wrap it in a module that does."
        )
    return out


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return all output tensors in evaluation mode; for copies, whose mode it sets."""
    with torch.no_grad():
        return list(tensors_in(model.eval()(*inputs)))


def tensors_in(out: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of whatever a forward returns."""
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from tensors_in(value)
    elif isinstance(out, Sequence) and not isinstance(out, str):
        for value in out:
            yield from tensors_in(value)


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return max |expected - found| / max |expected|, the worst of several outputs."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        scale = one.double().abs().max().clamp(min=1e-30)
        apart = (one.double() - other.double()).abs().max() / scale
        worst = max(worst, float(apart.nan_to_num(float("inf"))))
    return worst
