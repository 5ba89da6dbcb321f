"""The weights of a model that masks can cover, and checks that refuse other models and layers."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune

from robust_plugin.masks.groups import Group, Member
from robust_plugin.masks.masked_layer import is_masked
from robust_plugin.masks.masked_weight import SHARDED, is_sharded
from robust_plugin.runtime.calls import explain_wrong_calls, user_level
from robust_plugin.runtime.values import check_model

_PRUNABLE: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.modules.conv._ConvNd: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}


def refuse_wrapped(model: nn.Module) -> None:
    """Raise an error if ``model`` is wrapped, or masks cannot be attached to it for other reasons.

    Masks are attached to the network inside of a wrapper, never to the wrapper.

    Raises:
        TypeError: if ``model`` is not an nn.Module.
        ValueError: if the model has lazy layers, is wrapped in DataParallel,
            DistributedDataParallel, FSDP or torch.compile, or is a module of TorchScript or
            torch.export.
    """
    refuse_fixed(model)
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet; run one forward pass before attaching.")
        if is_sharded(parameter):
            raise ValueError(SHARDED)
    kind = type(model).__name__
    fix = {
        "DistributedDataParallel": "model.module, and wrap it again after set_phase",
        "DataParallel": "model.module",
        "OptimizedModule": "model._orig_mod, and compile after attaching",
    }
    if kind.startswith(("FullySharded", "FSDP")):
        raise ValueError(SHARDED)
    if kind in fix:
        raise ValueError(f"model is wrapped in {kind}; give {fix[kind]}.")


def refuse_masked(model: nn.Module) -> None:
    """Raise an error if the weight of a layer is computed from others instead of being stored.

    Raises:
        ValueError: naming the layer, which has a mask of a ``Pruner`` or of torch's prune, another
            parametrization, or a weight that a hook computes (weight_norm, spectral_norm).
    """
    for name, layer in model.named_modules():
        pruned = any(
            isinstance(h, prune.BasePruningMethod) for h in layer._forward_pre_hooks.values()
        )
        if pruned or is_masked(layer) or parametrize.is_parametrized(layer):
            raise ValueError(
                f"layer {name!r} carries a mask or another parametrization; finalize the pruner, "
                "or remove it, first: channels are cut from plain parameters."
            )
        made = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
        if made and layer._parameters.get("weight") is None:
            raise ValueError(
                f"the weight of layer {name!r} is no parameter but made by a hook (weight_norm or "
                "spectral_norm); remove that first, as by torch.nn.utils.remove_weight_norm: "
                "channels are cut from plain parameters."
            )


def refuse_tied(model: nn.Module, group: Group) -> None:
    """Raise an error if a parameter of a group has two names in the model, so that it is tied.

    Raises:
        ValueError: naming the parameter.
    """
    names: dict[nn.Parameter, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, set()).add(name)
    for member in (*group.members, *group.coupled):
        parameter = model.get_parameter(member.name)
        if len(names[parameter]) > 1:
            raise ValueError(f"{' and '.join(sorted(names[parameter]))} are one parameter")


@explain_wrong_calls
def weight_groups(model: nn.Module, exclude: Collection[str | nn.Module] = ()) -> tuple[Group, ...]:
    """Return one group (the parameters of one mask) per convolution, linear or attention weight.

    Tied weights share one group. In a model of peft, LoRA's own matrices stay dense, and so do the
    originals of layers that it trains in full (``modules_to_save``), which are not used.

    Args:
        model: any model without masks.
        exclude: layers or names of layers that stay dense, together with their submodules.

    Raises:
        ValueError: if nothing is left to prune, an excluded layer is not in the model, a weight
            is tied to a parameter that cannot be masked, or a layer is parametrized already.
    """
    modules = dict(check_model(model).named_modules(remove_duplicate=False))
    dense = below(modules, exclude) | _set_aside(model)
    owners: dict[nn.Parameter, list[Member]] = {}
    for member in prunable_members(model):
        if member.layer in dense:
            continue
        if is_masked(member.layer) or parametrize.is_parametrized(member.layer):
            raise ValueError(
                f"layer {member.layer_name!r} is parametrized already; finalize or "
                "remove_parametrizations first, or exclude it."
            )
        parameter = member.layer._parameters.get(member.parameter)
        if parameter is None:
            raise ValueError(
                f"{member.name} is no parameter but made by a hook (torch's prune, weight_norm or "
                "spectral_norm); remove that first, or exclude the layer."
            )
        owners.setdefault(parameter, []).append(member)
    masked = {(member.layer, member.parameter) for each in owners.values() for member in each}
    others = {
        parameter: f"{name}.{key}" if name else key
        for name, layer in modules.items()
        for key, parameter in layer._parameters.items()
        if parameter is not None and (layer, key) not in masked
    }
    if not owners:
        raise ValueError(
            f"{type(model).__name__} has no prunable layer"
            + (" that is not excluded" if dense else "")
            + "; prunable are convolutions, linear layers and MultiheadAttention."
        )
    for parameter, members in owners.items():
        if parameter in others:
            raise ValueError(
                f"{members[0].name} and {others[parameter]} are one tied parameter, and only the "
                f"first can be masked; untie them, or give exclude=[{members[0].layer_name!r}]."
            )
    return tuple(Group(tuple(members)) for members in owners.values())


def warn_of_uncovered(model: nn.Module, groups: Collection[Group]) -> None:
    """Warn if ``groups`` hold under half of a model's parameters, and name the largest others."""
    covered = {m.layer._parameters.get(m.parameter) for group in groups for m in group.members}
    sizes = {name: p.numel() for name, p in model.named_parameters() if p not in covered}
    total = sum(p.numel() for p in model.parameters())
    if 2 * sum(sizes.values()) > total:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        warnings.warn(
            f"masks cover {1 - sum(sizes.values()) / total:.1%} of the {total:,} parameters; the "
            f"rest stays dense, the largest being {', '.join(largest)}.",
            stacklevel=user_level(),
        )


def prunable_members(model: nn.Module) -> Iterator[Member]:
    """Yield every weight of a model that masks can cover, whether or not a mask is attached.

    These are the weights of convolutions and linear layers, and the input projections of
    MultiheadAttention.
    """
    for name, layer in model.named_modules():
        for kind, parameters in _PRUNABLE.items():
            if isinstance(layer, kind):
                for parameter in parameters:
                    if getattr(layer, parameter) is not None:
                        yield Member(layer, name, parameter)


def below(modules: Mapping[str, nn.Module], exclude: Collection[str | nn.Module]) -> set[nn.Module]:
    """Return the excluded layers and all their submodules.

    Args:
        modules: all modules of the model, by name.
        exclude: layers or names of layers of the model.

    Raises:
        TypeError: if ``exclude`` is a single layer or name instead of a list.
        ValueError: if an excluded layer is not in the model.
    """
    if isinstance(exclude, str | nn.Module) or not isinstance(exclude, Collection):
        raise TypeError(f"exclude is {exclude!r}; give a list of layers or of their names.")
    found: set[nn.Module] = set()
    for entry in exclude:
        layer = modules.get(entry) if isinstance(entry, str) else entry
        if layer is None or layer not in modules.values():
            names = [name for name in modules if name]
            close = difflib.get_close_matches(str(entry), names, n=1)
            hint = f" Give {close[0]!r}." if close else ""
            raise ValueError(
                f"exclude names {entry!r}, which is not in the model; it has {names}.{hint}"
            )
        found.update(layer.modules())
    return found


def _set_aside(model: nn.Module) -> set[nn.Module]:
    """Return the layers that peft added to a model, or keeps in it without using them."""
    found: set[nn.Module] = set()
    for parent in model.modules():
        children = dict(parent.named_children())
        for name, child in children.items():
            added = name.startswith("lora_") and "base_layer" in children
            unused = name == "original_module" and "modules_to_save" in children
            if added or unused:
                found.update(child.modules())
    return found


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the scales and shifts of normalisation layers, which are trained in every phase."""
    return [
        parameter
        for layer in model.modules()
        if "norm" in type(layer).__name__.lower()
        for parameter in layer.parameters(recurse=False)
    ]


def refuse_fixed(model: nn.Module) -> None:
    """Raise an error unless ``model`` is an nn.Module whose layers can be inspected and changed.

    Raises:
        TypeError: if ``model`` is not an nn.Module.
        ValueError: if it was made by TorchScript or torch.export and so has a graph instead of
            layers.
    """
    check_model(model)
    made_by = None
    if isinstance(model, torch.jit.ScriptModule):
        made_by = "TorchScript"
    elif isinstance(model, fx.GraphModule) and "train" in vars(model):  # its train() raises
        made_by = "torch.export"
    if made_by is not None:
        raise ValueError(
            f"model was made by {made_by} and holds a graph instead of layers; give the nn.Module "
            "that it was made of."
        )
