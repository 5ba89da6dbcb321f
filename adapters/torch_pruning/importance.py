"""Use learned scores and counts in training loops that are written for torch-pruning's pruners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from robust_plugin.adapters.torch_pruning.graph import Inputs, as_tuple
from robust_plugin.channels import ranking
from robust_plugin.copies.agreement import run
from robust_plugin.masks.prunable import refuse_masked
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.contexts import unfrozen


def learned_importance(pruner: Pruner) -> Callable[[Any], Tensor | None]:
    """Return the ``importance`` function of a torch-pruning pruner: ranks by the learned scores.

    For a group, the function returns one number per channel of its first layer: the channel's rank
    divided by the number of channels. All numbers are distinct, so that torch-pruning breaks ties
    as the mask does. For a group without scores it returns None, and torch-pruning leaves the group
    alone. The function expects that earlier steps have removed the channels of lowest rank. The
    pruner must be finalized before torch-pruning cuts.

    Args:
        pruner: pruner with groups from ``channel_groups``.

    Raises:
        ValueError: if the pruner's groups are not groups of channels. When the function is called:
            if the masks are still attached, or for another network, such as a copy.
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
    """Return the ``pruning_ratio_dict`` of a torch-pruning pruner: the learned share to remove.

    It has an entry for every layer, because torch-pruning would cut a layer without one, such as
    the classifier, by its default of one half.

    Args:
        pruner: pruner with groups from ``channel_groups``.

    Raises:
        ValueError: if the pruner's groups are not groups of channels, or a layer is frozen, which
            torch-pruning would not cut, or cut on one side only.
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
    """A torch-pruning pruner that removes the channels that another pruner has learned to remove.

    It fits into training loops that are written for torch-pruning's pruners. ``regularize`` keeps
    the channels that are scheduled for removal at zero while the rest trains, so that no step
    changes what the network computes. ``step`` checks the number of channels of each layer. As with
    any torch-pruning pruner, the model is cut in place and needs a new optimizer after each step.

    Args:
        model: the network, whose pruner is finalized. Frozen layers are cut, and stay frozen.
        example_inputs: inputs of one forward pass.
        learned: the pruner with the scores and the numbers of kept channels.
        iterative_steps: number of steps over which the channels are removed, at least 1.

    Raises:
        ValueError: if the masks are attached, the model is not the pruner's, or the number of
            steps is below 1.
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
            run(model, as_tuple(example_inputs))
            super().__init__(
                model,
                as_tuple(example_inputs),
                importance=learned_importance(learned),
                pruning_ratio_dict=ranking.learned_ratios(learned),
                iterative_steps=iterative_steps,
                in_channel_groups={},  # the default dicts would be shared by all pruners
                out_channel_groups={},
                num_heads={},
            )

    def regularize(self, model: nn.Module, loss: Any = None) -> None:
        """Zero the gradients of weights that read channels scheduled for removal.

        Call it before ``optimizer.step()``.

        Args:
            model: the network of this pruner.
            loss: not used; torch-pruning's loops give it.

        Raises:
            ValueError: for another model.
        """
        if model is not self.model:
            raise ValueError("regularize got another model than this pruner was made for.")
        ranking.zero_scheduled_gradients(self.learned)

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Remove the channels of this step.

        Args:
            interactive: return an iterator over the groups to prune, and prune nothing.

        Raises:
            ValueError: after the last step, or if a layer has another number of channels than this
                step should leave.
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
        """Yield the groups, then check the numbers of channels."""
        with unfrozen(self.model):
            yield from groups
        ranking.check_counts(self.learned, self.current_step, self.iterative_steps)
