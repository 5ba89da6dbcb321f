"""What is checked at the first step of any optimizer that trains the network.

A phase begins before its optimizer exists, so these checks cannot be hooks of that optimizer. They
are hooks of all optimizers of the process, which go as soon as they have done their work.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from robust_plugin.runtime.distributed import rank_and_world


def check_first_step(model: nn.Module, check: Callable[[nn.Module], None]) -> None:
    """Call ``check(model)`` after the first step of any optimizer that trains the model.

    This is for distributed processes; in a single process nothing is called.

    Args:
        model: the network.
        check: a function that compares the processes, such as ``check_ranks``.
    """
    _remove_spent()
    if rank_and_world()[1] == 1:
        return
    waiting = [model]

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if waiting and _trains(optimizer, waiting[0]):
            _spent.append(handle)
            check(waiting.pop())

    handle = register_optimizer_step_post_hook(hook)


class RefusedSteps:
    """Refuses the steps of all optimizers that train a network, from ``begin`` to ``end``."""

    def __init__(self) -> None:
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def begin(self, model: nn.Module, message: str) -> None:
        """From now on raise an error before each step of an optimizer that trains the model.

        Args:
            model: the network. The hook does not keep it in memory.
            message: the text of the ValueError.
        """
        _remove_spent()
        self.end()
        network = weakref.ref(model)

        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            found = network()
            if found is None:
                _spent.append(handle)
            elif _trains(optimizer, found):
                raise ValueError(message)

        self._handle = handle = register_optimizer_step_pre_hook(hook)

    def end(self) -> None:
        """Allow steps from now on."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None


def _remove_spent() -> None:
    while _spent:
        _spent.pop().remove()


def _trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Return whether an optimizer holds a parameter of the model that requires a gradient."""
    own = {id(p) for p in model.parameters() if p.requires_grad}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


# Hooks that have done their work. None can remove itself while torch calls them all in turn.
_spent: list[torch.utils.hooks.RemovableHandle] = []
