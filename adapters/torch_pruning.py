"""Channels that are really removed, by torch-pruning's dependency graph.

torch-pruning finds which layers a channel runs through and cuts them; what it cannot do it skips
without a word. Here that is an error: groups are tried on a randomised copy before anything is
learned, and a network without its channels is compared to the masked one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.channels import ranking, remove
from robust_plugin.channels.cut import History, removable
from robust_plugin.channels.groups import Axis, channel_group, layer_axes, placed
from robust_plugin.channels.reach import warn_of_unseen
from robust_plugin.channels.remove import Removed, save
from robust_plugin.copies.agreement import run, tensors_in
from robust_plugin.copies.copied import copied
from robust_plugin.masks.groups import Group
from robust_plugin.masks.prunable import below, refuse_masked, refuse_tied, refuse_wrapped
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.contexts import unfrozen

try:
    import torch_pruning as tp
except ImportError as error:
    raise ImportError("channel pruning needs torch-pruning; pip install torch-pruning") from error

__all__ = [
    "LearnedPruner", "Removed", "channel_groups", "learned_importance", "learned_ratios", "load",
    "remove_channels", "save",
]  # fmt: skip

Inputs = Tensor | tuple[Tensor, ...]

_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


def channel_groups(
    model: nn.Module, example_inputs: Inputs, *, ignored: Collection[str | nn.Module] = ()
) -> tuple[Group, ...]:
    """Return the network's channels as groups for a Pruner: one score a channel, one rate a group.

    A group is what can only be removed together: all producers of a residual stream, a depthwise
    convolution and what feeds it, the same positions of every part of a grouped convolution. Its
    mask multiplies the *input* channels of all layers that read it, since only then is the masked
    network the one without the channels (behind a BatchNorm, a filter of zeros is a constant).

    Channels that a norm or an attention mixes stay dense, with a warning that says so, and so do
    those whose removal from a randomised copy is not what their mask does, on the example inputs
    and on random ones, in evaluation and in training mode; the network's outputs always do. Layers
    that no trace sees, such as a head that runs in training only, are named in a warning. The
    model itself is not touched.

    Args:
        model: without masks, bare (no DDP, no torch.compile); frozen or not.
        example_inputs: what one forward pass takes, batch dimension first.
        ignored: layers, or names of layers, whose output channels stay, with all below them.

    Raises:
        ValueError: for a masked or wrapped model, inputs that its forward does not take, a graph
            that torch-pruning cannot read, or where no channels can be removed, with the reasons.
    """
    refuse_wrapped(model)
    refuse_masked(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    spared = below(modules, ignored)
    inputs = _tuple(example_inputs)
    graph = _trace(copied(model), inputs)
    seen = [graph._module2name[m] for m in graph.module2node if m in graph._module2name]
    warn_of_unseen(model, inputs, seen, spared)
    candidates: list[Group] = []
    refused: dict[str, str] = {}
    for coupled in graph.get_all_groups(root_module_types=_ROOTS):
        name = graph._module2name[coupled[0].dep.target.module]
        is_output = any(item.dep.target.type == tp.ops.OPTYPE.OUTPUT for item in coupled)
        if is_output or spared & {modules[made] for made in _producers(graph, coupled)}:
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
    return removable(model, inputs, candidates, refused, _replay)


def _producers(graph: Any, coupled: Any) -> Iterator[str]:
    for item in coupled:
        makes = graph.is_out_channel_pruning_fn(item.dep.handler)
        if makes and isinstance(item.dep.target.module, _ROOTS):
            yield graph._module2name[item.dep.target.module]


def _axes(graph: Any, coupled: Any, modules: Mapping[str, nn.Module]) -> Iterator[Axis]:
    """Yield every dimension of a parameter that torch-pruning would cut with this group.

    Raises:
        ValueError: with the reason why the group cannot be removed exactly.
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


def _replay(model: nn.Module, inputs: tuple[Tensor, ...], history: History) -> None:
    """Cut a plain network in place by a history; its flags and modes stay as they are."""
    with unfrozen(model):
        graph = _trace(model, inputs)
        graph.load_pruning_history(list(history))


def _trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Return torch-pruning's dependency graph of a copy, unfrozen, since it follows autograd."""
    run(model, inputs)
    model.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            # One operation more, so that the graph ends in outputs, not in the layers before them.
            return tp.DependencyGraph().build_dependency(
                model,
                inputs,
                output_transform=lambda out: [o * 1 for o in tensors_in(out)],
                verbose=False,
            )
    except Exception as error:
        raise ValueError(
            f"torch-pruning cannot read the graph of {type(model).__name__}: {error!r}"
        ) from error


def remove_channels(pruner: Pruner, example_inputs: Inputs) -> Removed:
    """Return a copy of the network without the channels that are masked, verified.

    Args:
        pruner: in the finetune phase or finalized (MagnitudePruner: at any time), with groups
            from ``channel_groups``. Neither it nor its model is changed.
        example_inputs: what one forward pass takes; the outputs are compared on them.

    Raises:
        ValueError: if the counts are not final yet, the groups are not of channels, the forward
            does not take the inputs, or if the small network is not what the masks ask for: a
            parameter of another shape or value, or other outputs.

    >>> from robust_plugin import MagnitudePruner
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 5), nn.Flatten(), nn.Linear(32, 2)
    ... )
    >>> x = torch.rand(1, 1, 8, 8)
    >>> groups = channel_groups(model, x)
    >>> pruner = MagnitudePruner(
    ...     model, density=0.5, budget="channels", groups=groups, example_inputs=x
    ... )
    >>> small = remove_channels(pruner, x)
    >>> small.model[0], small.counts
    (Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1)), {'0': 4, '1': 4})
    """
    return remove.remove(pruner, _tuple(example_inputs), _replay)


def load(path: str | Path, model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return the network that ``save`` wrote, bit for bit, cut from a copy of the large one.

    Args:
        path: the file.
        model: the architecture before pruning, with any weights, of the dtype that was saved.
        example_inputs: what one forward pass takes.

    Raises:
        ValueError: for a file that is not of ``save``, or another architecture or dtype.
    """
    return remove.load_into(path, model, _tuple(example_inputs), _replay)


def _tuple(example_inputs: Inputs) -> tuple[Tensor, ...]:
    # torch-pruning would unpack a bare tensor along its batch.
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def learned_importance(pruner: Pruner) -> Callable[[Any], Tensor | None]:
    """Return what a torch_pruning pruner takes as ``importance``: ranks by the learned scores.

    Of a group it returns one number a channel of the root, rank/n: distinct, so that ties fall as
    in the mask. A group that nobody scored has None, and is left alone. At a later step of
    several, the channels that are gone are those of lowest rank. The pruner has to be finalized
    before torch-pruning cuts.

    Raises:
        ValueError: if the pruner's groups are not of channels; when called, if the masks are
            still attached, or the network is another one, as a copy is.
    """
    scored = ranking.rankings(pruner)
    modules = set(pruner.model.modules())

    def importance(group: Any) -> Tensor | None:
        layer = group[0].dep.target.module
        if pruner.phase != "finalized":
            raise ValueError("the masks are attached; call pruner.finalize() before step().")
        if layer not in modules:
            raise ValueError(
                "torch-pruning prunes another model than the scores were learned on, maybe a "
                "copy of it; give it pruner.model."
            )
        makes = group._DG.is_out_channel_pruning_fn(group[0].dep.handler)
        if layer not in scored or not makes:
            return None
        found, member = scored[layer]
        return found.importance(member)[torch.tensor(group[0].idxs)]

    return importance


def learned_ratios(pruner: Pruner) -> dict[nn.Module, float]:
    """Return what a torch_pruning pruner takes as ``pruning_ratio_dict``: the learned counts.

    One entry for every layer: torch-pruning would cut an unlisted one, the classifier say, by its
    default of one half.

    Raises:
        ValueError: if the pruner's groups are not of channels, or a layer is frozen, which
            torch-pruning would leave as it is or cut on one side only.
    """
    ratios = ranking.learned_ratios(pruner)
    for name, layer in pruner.model.named_modules():
        if layer in ratios and pruner.frozen & set(layer.parameters()):
            raise ValueError(
                f"layer {name!r} is frozen, and torch-pruning follows autograd only: unfreeze it "
                "before the pruner attaches, or take remove_channels or LearnedPruner."
            )
    return ratios


class LearnedPruner(tp.pruner.BasePruner):  # type: ignore[misc]
    """A torch_pruning pruner that removes, in loops made for those, what another pruner learned.

    ``regularize`` keeps the condemned channels at zero while the rest trains, so that no step
    changes what the network computes; ``step`` checks every count. As with any torch_pruning
    pruner, the model is cut in place and needs a new optimizer after each step.

    Args:
        model: the network, its pruner finalized. Frozen layers are cut, and stay frozen.
        example_inputs: what one forward pass takes.
        learned: the pruner with scores and counts.
        iterative_steps: in how many steps the channels go.

    Raises:
        ValueError: if the masks are attached, the model is not the pruner's, or the number of
            steps is below one.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Inputs, learned: Pruner, *, iterative_steps: int = 1
    ) -> None:
        refuse_masked(model)
        if learned.model is not model:
            raise ValueError("the scores were learned on another model; give learned.model.")
        if iterative_steps < 1:
            raise ValueError(f"iterative_steps is {iterative_steps}; legal: 1 or more.")
        self.learned = learned
        with unfrozen(model), torch.enable_grad():
            run(model, _tuple(example_inputs))
            super().__init__(
                model,
                _tuple(example_inputs),
                importance=learned_importance(learned),
                pruning_ratio_dict=ranking.learned_ratios(learned),
                iterative_steps=iterative_steps,
                in_channel_groups={},  # the defaults are shared with every other pruner
                out_channel_groups={},
                num_heads={},
            )

    def regularize(self, model: nn.Module, loss: Any = None) -> None:
        """Take the gradient from what reads condemned channels; call it before optimizer.step().

        Raises:
            ValueError: if it is another model.
        """
        if model is not self.model:
            raise ValueError("regularize got another model than this pruner was made for.")
        ranking.hold_condemned(self.learned)

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Remove this step's channels; ``interactive`` yields the groups to prune instead.

        Raises:
            ValueError: after the last step, or if a count is not what this step should leave.
        """
        if self.current_step >= self.iterative_steps:
            raise ValueError(f"all {self.iterative_steps} steps are done already.")
        groups = self._checked(super().step(interactive=True))
        if interactive:
            return groups
        for group in groups:
            group.prune()
        return None

    def _checked(self, groups: Iterator[Any]) -> Iterator[Any]:
        with unfrozen(self.model):
            yield from groups
        ranking.check_counts(self.learned, self.current_step, self.iterative_steps)
