"""Find the channels of a network that depend on each other, as groups for a Pruner."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch_pruning as tp
from torch import nn

from robust_plugin.adapters.torch_pruning.graph import ROOTS, Inputs, as_tuple, replay, trace
from robust_plugin.channels.cut import removable
from robust_plugin.channels.groups import Axis, channel_group, layer_axes, placed
from robust_plugin.channels.reach import warn_of_unseen
from robust_plugin.copies.deep_copy import copied
from robust_plugin.masks.groups import Group, Groups
from robust_plugin.masks.prunable import below, refuse_masked, refuse_tied, refuse_wrapped
from robust_plugin.runtime.calls import explain_wrong_calls


@explain_wrong_calls
def channel_groups(
    model: nn.Module, example_inputs: Inputs, *, ignored: Collection[str | nn.Module] = ()
) -> Groups:
    """Return the channels of a network as groups for a Pruner.

    A group contains the channels of all layers that must keep the same channels, such as all layers
    that write to a residual stream, or a depthwise convolution and the layer before it. It has one
    score per channel; channels at the same position of every part of a grouped convolution share
    one score, because they can only be removed together. A Pruner learns one density per group. The
    mask of a group multiplies the *input* channels of all layers that read its channels: only then
    does the masked network equal the one without the channels (after a BatchNorm, a filter of zeros
    is a constant, not zero).

    Some channels stay dense, with a warning: channels that a norm or an attention mixes, and
    channels whose removal has another effect than their mask on a copy with random parameters. The
    copy is tried on the example inputs and on random inputs, in evaluation and in training mode.
    The output channels of the network are never removed. A warning names layers that the trace does
    not contain, such as a head that runs in training only. The model is not changed.

    Args:
        model: network without masks and without wrappers (DDP, torch.compile); frozen or not.
        example_inputs: inputs of one forward pass, batch dimension first.
        ignored: layers, or names of layers, whose output channels are never removed; a module
            stands for all layers inside it.

    Returns:
        Groups: a tuple of groups that also holds ``example_inputs``, for the argument ``groups`` of
        a Pruner.

    Raises:
        ValueError: for a masked or wrapped model, inputs that its forward does not take, a graph
            that torch-pruning cannot read, or if no channels can be removed; the message has the
            reasons.
    """
    refuse_wrapped(model)
    refuse_masked(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    kept_dense = below(modules, ignored)
    inputs = as_tuple(example_inputs)
    graph = trace(copied(model), inputs)
    seen = [graph._module2name[m] for m in graph.module2node if m in graph._module2name]
    warn_of_unseen(model, inputs, seen, kept_dense)
    candidates: list[Group] = []
    refused: dict[str, str] = {}
    for coupled in graph.get_all_groups(root_module_types=ROOTS):
        name = graph._module2name[coupled[0].dep.target.module]
        is_output = any(item.dep.target.type == tp.ops.OPTYPE.OUTPUT for item in coupled)
        if is_output or kept_dense & {modules[made] for made in _producers(graph, coupled)}:
            continue
        try:
            group = channel_group(name, len(coupled[0].idxs), list(_axes(graph, coupled, modules)))
            refuse_tied(model, group)
        except ValueError as error:
            refused[name] = str(error)
            continue
        if group.size > 1:
            candidates.append(group)
    order = {name: place for place, name in enumerate(modules)}
    candidates.sort(key=lambda group: order[group.name])
    return Groups(removable(model, inputs, candidates, refused, replay), inputs)


def _producers(graph: Any, coupled: Any) -> Iterator[str]:
    """Yield the names of the layers that compute the channels of a torch-pruning group.

    Args:
        graph: torch-pruning's dependency graph.
        coupled: a group of that graph.
    """
    for item in coupled:
        makes = graph.is_out_channel_pruning_fn(item.dep.handler)
        if makes and isinstance(item.dep.target.module, ROOTS):
            yield graph._module2name[item.dep.target.module]


def _axes(graph: Any, coupled: Any, modules: Mapping[str, nn.Module]) -> Iterator[Axis]:
    """Yield each parameter dimension that torch-pruning would shorten when it removes a group.

    Args:
        graph: torch-pruning's dependency graph.
        coupled: a group of that graph.
        modules: the model's modules by name.

    Raises:
        ValueError: if the group cannot be removed exactly; the message is the reason.
    """
    for item in coupled:
        module = item.dep.target.module
        if None in item.root_idxs:
            raise ValueError("a repeated tensor reads them")
        if isinstance(module, nn.Parameter):
            owner, _, key = graph._param_to_name[module].rpartition(".")
            dim = item.dep.target.pruning_dim % module.dim()
            follows = placed(module.shape[dim], item.idxs, item.root_idxs)
            yield Axis(modules[owner], owner, key, dim, follows)
        elif module in graph._module2name:
            name = graph._module2name[module]
            makes = graph.is_out_channel_pruning_fn(item.dep.handler)
            yield from layer_axes(modules[name], name, item.idxs, item.root_idxs, makes=makes)
