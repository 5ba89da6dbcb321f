"""Adversarial inputs of a batch, found once even if its objective is evaluated twice.

The objectives of ``by_attack.py`` get their inputs from ``attacked``. ``by_perturbation.py``
evaluates an objective twice, and the second time no attack runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack
from robust_plugin.runtime.distributed import unwrapped


class FoundInputs:
    """Adversarial inputs that attacks have found for one batch, in their order."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []
        self._next: int | None = None

    def repeat(self) -> None:
        """From now on, return the inputs that were found, in their order."""
        self._next = 0

    def found_by(self, attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the next inputs: those of the attack, or, after ``repeat``, the same again."""
        if self._next is None:
            self._found.append(attack(model, x, y))
            return self._found[-1]
        self._next += 1
        return self._found[self._next - 1]


_KEPT: ContextVar[FoundInputs | None] = ContextVar("adversarial inputs", default=None)


@contextmanager
def keeping_inputs() -> Iterator[FoundInputs]:
    """Within the context, adversarial inputs are kept, to be used again after ``repeat``."""
    token = _KEPT.set(found := FoundInputs())
    try:
        yield found
    finally:
        _KEPT.reset(token)


def attacked(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return adversarial inputs of a batch, by an attack on the network without its wrapper.

    Args:
        attack: the attack.
        model: network, in DDP or not.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
    """
    kept, network = _KEPT.get(), unwrapped(model)
    return attack(network, x, y) if kept is None else kept.found_by(attack, network, x, y)
