"""What happens when anybody loads a state into a network with masks.

Loops save and load the network's own state_dict, often without the pruner's. So a network with
masks checks a state before it is loaded, and tells its pruner afterwards.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from robust_plugin.masks.group_mask import GroupMask
from robust_plugin.masks.mask_state import facts_of


def refuse_other_budget(
    model: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object
) -> None:
    """Raise an error if a state is of a pruner that learns and has another budget.

    It is called before anything is loaded. A pruner that learns nothing takes the budget of the
    state.

    Args:
        model: network with masks.
        state: the state that is about to be loaded.
        prefix: what stands in ``state`` before every name of this network.

    Raises:
        ValueError: naming both densities; or if an earlier revision has saved the state.
    """
    for name, module in model.named_modules():
        found = state.get(f"{prefix}{name}._extra_state")
        if not isinstance(module, GroupMask) or found is None:
            continue
        facts = facts_of(found)
        if facts["progress"] and "shrink" not in facts["progress"]:
            raise ValueError(
                f"the state of {name} was saved by an earlier revision of robust_plugin, which had "
                "no schedules; load it there, finalize, and load the plain network here."
            )
        saved = facts["budget"]
        learns = any(True for _ in module.parameters())
        if learns and saved and saved != module.budget:
            raise ValueError(
                f"the state is of a pruner that keeps {saved['density']:g} (a cost of "
                f"{saved['total']:,.0f}), and this one keeps {module.budget['density']:g} "
                f"({module.budget['total']:,.0f}); attach a pruner with the density of the state."
            )


class AfterLoad:
    """Hook that calls a method of a pruner after its own network, no copy of it, was loaded.

    Args:
        model: the network of the pruner.
        call: method of the pruner, called without arguments.
    """

    def __init__(self, model: nn.Module, call: Callable[[], None]) -> None:
        self._model = weakref.ref(model)
        self._call = weakref.WeakMethod(call)

    def __call__(self, module: nn.Module, _: Any) -> None:
        """Call the method if ``module`` is the network, and the pruner still exists."""
        call = self._call()
        if call is not None and self._model() is module:
            call()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes the hook of a copy, which does nothing."""
        return _do_nothing, ()


def _do_nothing() -> Callable[..., None]:
    """Return a hook without effect."""
    return _nothing


def _nothing(*_: object) -> None:
    """Do nothing."""
