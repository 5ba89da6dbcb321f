"""Learned scores and numbers of channels, for training loops written for torch-pruning's pruners.

The functions and the class take a Pruner that has learned which channels to keep.
"""

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
    """Return a function for the argument ``importance`` of a torch-pruning pruner.

    The function takes a group of torch-pruning and returns one value in (0, 1] per channel of the
    group's first layer: the channel's rank by the learned scores, divided by the number of
    channels. Channels that can only be removed together count as one. Other channels never have the
    same value, so that torch-pruning breaks ties as the mask does. For a group without scores the
    function returns None, and torch-pruning does not prune the group. The function expects that
    earlier steps have removed the channels of lowest rank. The pruner must be finalized before
    torch-pruning cuts.

    Args:
        pruner: pruner with groups from ``channel_groups``.

    Raises:
        ValueError: if the pruner's groups are not groups of channels. The returned function raises
            it if the masks are still attached, or for a group of another network, such as a copy.
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
    """Return the share of output channels to remove from each layer, by the learned scores.

    Give it to a torch-pruning pruner as ``pruning_ratio_dict``. It has an entry for every
    convolution and linear layer, because torch-pruning would remove half of the channels of a layer
    without an entry, such as the classifier.

    Args:
        pruner: pruner with groups from ``channel_groups``.

    Raises:
        ValueError: if the pruner's groups are not groups of channels, or if a layer is frozen,
            because torch-pruning would not cut it, or would cut only its inputs or only its
            outputs.
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
    """A torch-pruning pruner that removes the channels that a Pruner has learned to remove.

    It fits into training loops that are written for torch-pruning's pruners. ``regularize`` keeps
    the weights at zero that read channels which later steps will remove, while the rest trains, so
    that no step changes what the network computes. ``step`` checks the number of channels of each
    layer. As with any torch-pruning pruner, the model is cut in place and needs a new optimizer
    after each step.

    Args:
        model: the network of ``learned``. Frozen layers are cut too, and stay frozen.
        example_inputs: inputs of one forward pass.
        learned: a finalized Pruner, which has the scores and the numbers of channels to keep.
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
        """Zero the gradients of all weights that read channels which later steps will remove.

        Call this method after ``loss.backward()`` and before ``optimizer.step()``.

        Args:
            model: the network of this pruner.
            loss: not used; torch-pruning's training loops pass it.

        Raises:
            ValueError: for another model.
        """
        if model is not self.model:
            raise ValueError("regularize got another model than this pruner was made for.")
        ranking.zero_scheduled_gradients(self.learned)

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Remove the channels of the next step from the model, in place.

        Args:
            interactive: True to prune nothing and return an iterator over torch-pruning's groups;
                the caller prunes each by ``group.prune()``.

        Returns:
            The iterator; None if ``interactive`` is False.

        Raises:
            ValueError: after the last step, or if the step leaves a layer with a different number
                of channels than it should. The iterator raises the latter at its end.
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
        """Yield the groups of one step; at the end, check the number of channels of each layer."""
        with unfrozen(self.model):
            yield from groups
        ranking.check_counts(self.learned, self.current_step, self.iterative_steps)
