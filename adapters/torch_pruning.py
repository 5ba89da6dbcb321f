"""Channels that are really removed, by torch-pruning's dependency graph.

torch-pruning finds which layers a channel runs through and cuts them; it also skips what it cannot
do without a word. Here every skip is an error: groups are tried on a randomised copy before
anything is learned, and a network without its channels is compared to the masked one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from robust_plugin.channels import Axis, channel_group, kept_entries, select
from robust_plugin.checkpoint import read_tensors, write_tensors
from robust_plugin.dense import finalize
from robust_plugin.flops import total_multiply_adds
from robust_plugin.groups import Group
from robust_plugin.prunable import below, refuse_wrapped
from robust_plugin.pruner import Pruner

try:
    import torch_pruning as tp  # noqa: TID251
except ImportError as error:
    raise ImportError("channel pruning needs torch-pruning; pip install torch-pruning") from error

Inputs = Tensor | tuple[Tensor, ...]

_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)
_KIND = tp.ops.OPTYPE
# What mixes channels: a mask in front of the next layer is then not the same as removal.
_MIXES = {
    _KIND.LN: "normalises over the channels, so that removing one changes the others",
    _KIND.GN: "normalises over channels, so that removing one changes the others",
    _KIND.MHA: "splits the channels into heads",
    _KIND.LSTM: "is recurrent",
}


@dataclass(frozen=True)
class Removed:
    """A network without the channels that a pruner masked.

    Attributes:
        model: the small network, with flags and modes as the large one has them.
        history: what was removed, as torch-pruning replays it; JSON.
        counts: how many units each group keeps, by name.
        multiply_adds: of one example, before and after.
        parameters: before and after.
        difference: the largest difference of the outputs to the masked network's, relative to
            the largest output.
    """

    model: nn.Module
    history: tuple[tuple[str, bool, tuple[int, ...]], ...]
    counts: Mapping[str, int]
    multiply_adds: tuple[int, int]
    parameters: tuple[int, int]
    difference: float


def channel_groups(
    model: nn.Module, example_inputs: Inputs, *, ignored: Collection[str | nn.Module] = ()
) -> tuple[Group, ...]:
    """Return the network's channels as groups for a Pruner: one score a channel, one rate a group.

    A group is what can only be removed together: all producers of a residual stream, a depthwise
    convolution and what feeds it, the same positions of every part of a grouped convolution. Its
    mask multiplies the *input* channels of all layers that read it, since only then is the masked
    network the one without the channels (behind a BatchNorm, a filter of zeros is a constant).

    Channels that a norm or an attention mixes are left dense, with a warning that names them, as
    are those whose removal from a randomised copy changes its logits beyond rounding; the
    network's outputs always are. The model itself is not touched.

    Args:
        model: without masks, bare (no DDP, no torch.compile); frozen or not.
        example_inputs: what one forward pass takes, batch dimension first.
        ignored: layers, or names of layers, whose output channels stay, with all below them.

    Raises:
        ValueError: for a masked or wrapped model, inputs that its forward does not take, or
            where no channels can be removed, with the reasons.
    """
    refuse_wrapped(model)
    _refuse_masks(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    spared = below(modules, ignored)
    inputs = _tuple(example_inputs)
    graph = _trace(copy.deepcopy(model), inputs)
    found: list[Group] = []
    refused: dict[str, str] = {}
    for coupled in graph.get_all_groups(root_module_types=_ROOTS):
        name = graph._module2name[coupled[0].dep.target.module]
        if any(item.dep.target.type == _KIND.OUTPUT for item in coupled):
            continue
        try:
            axes = list(_axes(graph, coupled, modules))
            if any(axis.layer in spared for axis in axes if _is_filter(axis)):
                continue
            group = channel_group(name, len(coupled[0].idxs), axes)
            _refuse_tied(group, model)
            if not group.members:
                raise ValueError("no layer reads them")
        except ValueError as error:
            refused[name] = str(error)
            continue
        if group.size > 1:
            found.append(group)
    found = _removable(model, inputs, found, refused)
    if refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        if not found:
            raise ValueError(f"no channels of {type(model).__name__} can be removed: {reasons}.")
        warnings.warn(
            f"the output channels of {len(refused)} layers and what is coupled to them stay "
            f"dense: {reasons}. Name them in ignored to say that you know.",
            stacklevel=2,
        )
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no channels between two layers that are not ignored."
        )
    return tuple(found)


def _axes(graph: Any, coupled: Any, modules: Mapping[str, nn.Module]) -> Iterator[Axis]:
    """Yield every dimension of a parameter that torch-pruning would cut with this group.

    Raises:
        ValueError: with the reason why removal is not exact, or not what the library does.
    """
    for item in coupled:
        module, kind = item.dep.target.module, item.dep.target.type
        produced = graph.is_out_channel_pruning_fn(item.dep.handler)
        if None in item.root_idxs:
            raise ValueError("a repeated tensor reads them")
        if kind in _MIXES:
            raise ValueError(f"{graph._module2name[module]} {_MIXES[kind]}")
        if kind == _KIND.PARAMETER:
            layer_name, _, key = graph._param_to_name[module].rpartition(".")
            dims = {key: item.dep.target.pruning_dim % module.dim()}
            length = module.shape[dims[key]]
        else:
            layer_name = graph._module2name.get(module)
            dims, length = _dimensions(layer_name, module, kind, produced)
        channel = torch.full((length,), -1)
        channel[item.idxs] = torch.tensor(item.root_idxs)
        for key, dim in dims.items():
            grouped = kind == _KIND.CONV and key == "weight"
            yield Axis(
                modules[layer_name],
                layer_name,
                key,
                dim,
                channel,
                blocks=module.groups if grouped else 1,
                masked=kind in (_KIND.CONV, _KIND.LINEAR) and not produced,
            )


def _dimensions(name: str, layer: Any, kind: Any, produced: bool) -> tuple[dict[str, int], int]:
    """Return which dimension of which parameter follows a layer's channels, and their number."""
    transposed = getattr(layer, "transposed", False)
    if kind in (_KIND.CONV, _KIND.DEPTHWISE_CONV) and (
        (transposed and layer.groups > 1)
        or (kind == _KIND.DEPTHWISE_CONV and layer.in_channels != layer.out_channels)
    ):
        raise ValueError(f"torch-pruning cannot cut {name}, a {type(layer).__name__} in groups")
    if kind == _KIND.IN and layer.track_running_stats:
        raise ValueError(f"torch-pruning does not cut the running statistics of {name}")
    if kind in (_KIND.CONV, _KIND.LINEAR) and not produced:
        length = layer.in_features if kind == _KIND.LINEAR else layer.in_channels
        return {"weight": 0 if transposed else 1}, length
    lengths = {
        _KIND.CONV: "out_channels",
        _KIND.DEPTHWISE_CONV: "out_channels",
        _KIND.LINEAR: "out_features",
        _KIND.BN: "num_features",
        _KIND.IN: "num_features",
        _KIND.PRELU: "num_parameters",
        _KIND.EMBED: "embedding_dim",
    }
    if kind not in lengths or (kind == _KIND.PRELU and layer.num_parameters == 1):
        return {}, 1 << 20  # an operation without parameters; the number is not used
    dims = {key: 0 for key, _ in layer.named_parameters(recurse=False)}
    if kind == _KIND.EMBED or (kind == _KIND.CONV and transposed):
        dims["weight"] = 1
    return dims, getattr(layer, lengths[kind])


def _is_filter(axis: Axis) -> bool:
    return isinstance(axis.layer, _ROOTS) and axis.parameter == "weight" and not axis.masked


def _refuse_tied(group: Group, model: nn.Module) -> None:
    names: dict[nn.Parameter, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, set()).add(name)
    for member in (*group.members, *group.coupled):
        if len(names[cast(nn.Parameter, getattr(member.layer, member.parameter))]) > 1:
            raise ValueError(f"{member.name} is tied to another parameter")


def _removable(
    model: nn.Module, inputs: tuple[Tensor, ...], groups: list[Group], refused: dict[str, str]
) -> list[Group]:
    """Return the groups whose removal is exact on a randomised copy; note why others are not."""
    trial, inputs = _randomised(model, inputs)
    if not groups or _trial(trial, inputs, groups) is None:
        return groups
    alone = []
    for group in groups:
        reason = _trial(trial, inputs, [group])
        if reason is None:
            alone.append(group)
        else:
            refused[group.name] = reason
    together = _trial(trial, inputs, alone) if alone else None
    if together is not None:
        raise ValueError(
            f"each group of {type(model).__name__} can be removed, but not all together: "
            f"{together}; name some producers in ignored."
        )
    return alone


def _trial(model: nn.Module, inputs: tuple[Tensor, ...], groups: Sequence[Group]) -> str | None:
    """Remove half of the units; return what is wrong with the network that is left, or None."""
    generator = torch.Generator().manual_seed(0)
    masks = [torch.randperm(group.size, generator=generator) < group.size // 2 for group in groups]
    try:
        small, _ = _cut(model, inputs, groups, masks)
        masked = copy.deepcopy(model)
        for group, mask in zip(groups, masks, strict=True):
            for member in group.members:
                weight = masked.get_parameter(member.name).data.movedim(cast(int, member.dim), 0)
                follows = torch.arange(group.size) if member.index is None else member.index
                weight[(follows >= 0) & ~mask[follows]] = 0
        expected = _outputs(masked, inputs)
        difference = _difference(expected, _outputs(small, inputs))
    except Exception as error:  # a network cut in the wrong place fails in any way it likes
        return f"without them the network does not run ({error})"
    equal = difference <= torch.finfo(expected[0].dtype).eps ** 0.4  # 5e-7 in float64
    return None if equal else "their removal is not what their mask does"


def _randomised(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a copy, in float64 if it runs, with values that hide nothing.

    Norms and scales start at zero, one or 1e-6, where many a mixing of channels does not show.
    """
    trial = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*trial.named_parameters(), *trial.named_buffers()):
        if not tensor.is_floating_point():
            continue
        layer = trial.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, _ROOTS) and tensor.dim() > 1:
            value = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        else:
            value = 0.5 + torch.rand(tensor.shape, generator=generator)
        tensor.data.copy_(value)
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:
        double = copy.deepcopy(trial).double()
        _outputs(double, doubled)
    except Exception:  # a forward that fixes its dtype, a device without float64
        return trial, inputs
    return double, doubled


def _cut(
    model: nn.Module, inputs: tuple[Tensor, ...], groups: Sequence[Group], masks: Sequence[Tensor]
) -> tuple[nn.Module, list[Any]]:
    """Return a copy of a plain network without the units that are masked, and its history.

    Raises:
        ValueError: if torch-pruning cut anything else than what follows from the groups.
    """
    small = copy.deepcopy(model)
    history = []
    for group, mask in zip(groups, masks, strict=True):
        root = next(m for m in group.coupled if m.layer_name == group.name)
        unit = torch.arange(group.size) if root.index is None else root.index
        gone = (~mask.flatten().cpu()[unit]).nonzero().flatten().tolist()
        if gone:
            history.append([group.name, True, gone])
    _replay(small, inputs, history)
    kept = kept_entries(groups, masks)
    before = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        layer, _, key = name.rpartition(".")
        expected = select(before[name].detach(), kept.get((layer, key), {}))
        if expected.shape != parameter.shape or not torch.equal(expected, parameter):
            raise ValueError(
                f"torch-pruning left {name} with shape {tuple(parameter.shape)}, the masks ask for "
                f"{tuple(expected.shape)}"
            )
    return small, history


def _replay(model: nn.Module, inputs: tuple[Tensor, ...], history: Sequence[Any]) -> None:
    """Cut a plain network in place by a history; its flags and modes stay as they are."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    graph = _trace(model, inputs)
    graph.load_pruning_history(history)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    for module, mode in modes.items():
        module.training = mode


def _trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Return torch-pruning's dependency graph of a copy, which is unfrozen: it follows autograd."""
    _run(model, inputs)
    model.requires_grad_(True)

    def mark(out: Any) -> list[Tensor]:
        # One operation more, so that the graph ends in outputs and not in the layers that made them.
        return [o * 1 for o in tp.utils.flatten_as_list(out) if isinstance(o, Tensor)]

    with torch.inference_mode(False), torch.enable_grad():
        return tp.DependencyGraph().build_dependency(
            model, inputs, output_transform=mark, verbose=False
        )


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    try:
        return _outputs(model, inputs)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run on example_inputs of shapes "
            f"{[tuple(x.shape) for x in inputs]}; give what its forward takes, several inputs as "
            f"a tuple: {error}"
        ) from error


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs in evaluation mode, as a list; for copies, whose mode it sets."""
    with torch.no_grad():
        out = model.eval()(*inputs)
    return [o for o in tp.utils.flatten_as_list(out) if isinstance(o, Tensor)]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference of two networks' outputs, relative to the largest output."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        apart = (one.double() - other.double()).abs().max() / one.double().abs().max().clamp(1e-30)
        worst = max(worst, float(apart.nan_to_num(float("inf"))))
    return worst


def remove_channels(pruner: Pruner, example_inputs: Inputs) -> Removed:
    """Return a copy of the network without the channels that are masked, verified.

    Args:
        pruner: in the finetune phase or finalized (MagnitudePruner: at any time), with groups
            from ``channel_groups``. Neither it nor its model is changed.
        example_inputs: what one forward pass takes; on these the logits are compared.

    Raises:
        ValueError: if the counts are not final yet, the groups are not channels, the forward does
            not take the inputs, or if the small network is not what the masks ask for: a
            parameter of another shape or value, or other logits.
    """
    inputs = _tuple(example_inputs)
    _check_channels(pruner)
    if pruner.learn and pruner.phase not in ("finetune", "finalized"):
        raise ValueError(
            f"the phase is {pruner.phase!r}, in which masks still move; call "
            "pruner.set_phase('finetune') first: from there on they are at the budget."
        )
    plain = copy.deepcopy(pruner.model)
    expected = _run(copy.deepcopy(plain), inputs)
    if pruner.phase != "finalized":
        finalize(plain)
    masks = [mask.mask for mask in pruner.masks]
    small, history = _cut(plain, inputs, pruner.groups, masks)
    difference = _difference(expected, _outputs(copy.deepcopy(small), inputs))
    if difference > torch.finfo(expected[0].dtype).eps ** 0.5:
        raise ValueError(
            f"the network without the channels differs from the masked one by {difference:.2g} of "
            "its largest output. After finalize nothing holds pruned weights at zero: remove the "
            "channels before training on."
        )
    return Removed(
        small,
        tuple((name, out, tuple(gone)) for name, out, gone in history),
        {g.name: int(mask.kept) for g, mask in zip(pruner.groups, pruner.masks, strict=True)},
        (total_multiply_adds(plain, inputs), total_multiply_adds(small, inputs)),
        (_parameters(plain), _parameters(small)),
        difference,
    )


def save(path: str | Path, removed: Removed) -> None:
    """Write the small network: its history and its state, one safetensors file.

    Raises:
        ValueError: if there is no such folder.
    """
    content = {"history": removed.history}
    write_tensors(path, removed.model.state_dict(), content)


def load(path: str | Path, model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return the network that was saved, bit for bit, cut from a copy of the large architecture.

    Args:
        path: a file of ``save``.
        model: the architecture before pruning, with any weights, of the dtype that was saved.
        example_inputs: what one forward pass takes.

    Raises:
        ValueError: for a file that is not of ``save``, or another architecture or dtype.
    """
    path = Path(path)
    tensors, content = read_tensors(path)
    if "history" not in content:
        raise ValueError(f"{path} holds no removed channels; give a file that save wrote.")
    _refuse_masks(model)
    small = copy.deepcopy(model)
    unknown = sorted(
        {name for name, _, _ in content["history"]} - dict(model.named_modules()).keys()
    )
    if unknown:
        raise ValueError(f"{path} cuts {unknown[0]}, which {type(model).__name__} has not.")
    _replay(small, _tuple(example_inputs), content["history"])
    state = small.state_dict()
    for name in sorted(state.keys() | tensors.keys()):
        ours, theirs = (_form(each.get(name)) for each in (state, tensors))
        if ours != theirs:
            raise ValueError(f"{path} is of another network: {name} is {theirs}, here {ours}.")
    small.load_state_dict(tensors)
    return small


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _tuple(example_inputs: Inputs) -> tuple[Tensor, ...]:
    # torch-pruning would unpack a bare tensor along its batch.
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def _refuse_masks(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        hooked = getattr(layer, "_forward_pre_hooks", {}).values()
        if parametrize.is_parametrized(layer) or any(
            isinstance(hook, prune.BasePruningMethod) for hook in hooked
        ):
            raise ValueError(
                f"layer {name!r} carries a mask or another parametrization; finalize the pruner, "
                "or remove it, first: torch-pruning cuts plain parameters only."
            )


def _check_channels(pruner: Pruner) -> None:
    for group in pruner.groups:
        if not group.coupled:
            raise ValueError(
                f"group {group.name} is not of channels that can be removed; give the pruner "
                "groups=channel_groups(model, x[:1])."
            )
