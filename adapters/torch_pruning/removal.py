"""Remove masked channels from a copy of the network, and load a saved smaller network."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from robust_plugin.adapters.torch_pruning.graph import Inputs, as_tuple, replay
from robust_plugin.channels import remove
from robust_plugin.channels.remove import Removed
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.progress import ProgressOption


@explain_wrong_calls
def remove_channels(
    pruner: Pruner, example_inputs: Inputs | None = None, *, progress: ProgressOption = False
) -> Removed:
    """Return a copy of the network without its masked channels, checked against the masked one.

    Args:
        pruner: pruner with groups from ``channel_groups``, in the finetune phase or finalized (a
            MagnitudePruner: in any phase). Neither it nor its model is changed.
        example_inputs: inputs of one forward pass, on which the outputs are compared; None takes
            those that ``channel_groups`` or the pruner was given.
        progress: True for a progress bar of tqdm, or a function that is called with a ``Progress``
            at the start, after the cut, after each comparison of outputs and at the end; False to
            report nothing.

    Raises:
        ValueError: if the numbers of kept channels are not final yet, the groups are not groups of
            channels, the forward does not take the inputs, or the small network differs from the
            masked one: a parameter of another shape or value, or other outputs.

    >>> import torch
    >>> from robust_plugin import MagnitudePruner
    >>> from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 5), nn.Flatten(), nn.Linear(32, 2)
    ... )
    >>> x = torch.rand(1, 1, 8, 8)
    >>> groups = channel_groups(model, x)
    >>> pruner = MagnitudePruner(model, density=0.5, budget="channels", groups=groups)
    >>> small = remove_channels(pruner)
    >>> small.model[0], small.counts
    (Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1)), {'0': 4, '1': 4})
    """
    if not isinstance(pruner, Pruner):
        raise TypeError(
            f"pruner is a {type(pruner).__name__}; give the pruner that masks the channels."
        )
    inputs = pruner.example_inputs if example_inputs is None else example_inputs
    if inputs is None:
        raise ValueError(
            "example_inputs is None, and the pruner was given none; give what one forward pass "
            "takes, as x[:1]."
        )
    return remove.remove(pruner, as_tuple(inputs), replay, progress=progress)


@explain_wrong_calls
def load(path: str | Path, model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return the smaller network that ``save`` wrote, with the same weights bit for bit.

    It is made by cutting a copy of the large network and loading the saved weights.

    Args:
        path: the file.
        model: the large network, with all channels and any weights, in the dtype that was saved; it
            is not changed.
        example_inputs: inputs of one forward pass.

    Raises:
        ValueError: for a file that ``save`` did not write, or another architecture or dtype.
    """
    return remove.load_into(path, model, as_tuple(example_inputs), replay)
