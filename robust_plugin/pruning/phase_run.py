"""The whole job of a pruner as one loop: each phase with its optimizer, then finalize."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import torch
from torch import nn

from robust_plugin.pruning.optimizer_hook import innermost_optimizers, step_was_skipped
from robust_plugin.pruning.phases import PhaseName
from robust_plugin.runtime.values import is_whole

ParamGroups = list[dict[str, Any]]
MakeOptimizer = Callable[[ParamGroups], Any]


class Phased(Protocol):
    """What ``run_phases`` needs of a pruner."""

    model: nn.Module
    order: tuple[PhaseName, ...]

    @property
    def phase_done(self) -> tuple[str, int]:
        """The last phase that made steps, and how many."""

    def set_phase(self, phase: PhaseName) -> ParamGroups:
        """Begin a phase."""

    def follow(self, optimizer: Any, *, epochs: int | None, steps_per_epoch: int | None) -> None:
        """Update the masks after each step."""

    def count_step(self) -> None:
        """Count a step of the fine-tuning phase."""

    def finalize(self) -> None:
        """End the pruning."""


@dataclass(frozen=True)
class PhaseRun:
    """One phase of ``Pruner.phases``. Iterating over it gives the numbers of its epochs.

    Attributes:
        name: ``"shrink"``, ``"prune"`` or ``"finetune"``.
        model: the network, wrapped by the function that ``phases`` was given.
        optimizer: the optimizer of this phase.
        scheduler: what ``make_optimizer`` returned beside the optimizer; None if nothing.
        epochs: number of epochs of the phase.
        first_epoch: number of the epoch to begin with: 0, or more after a resume.
        resumed: whether a loaded state lies in this phase, so that the optimizer's state belongs to
            it.
    """

    name: PhaseName
    model: nn.Module
    optimizer: Any
    scheduler: Any
    epochs: int
    first_epoch: int = 0
    resumed: bool = False

    def __iter__(self) -> Iterator[int]:
        """Return an iterator over the numbers of the epochs that are left."""
        return iter(range(self.first_epoch, self.epochs))


def run_phases(
    pruner: Phased,
    make_optimizer: MakeOptimizer | Mapping[str, MakeOptimizer],
    *,
    epochs: Mapping[str, int],
    steps_per_epoch: int,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> Iterator[PhaseRun]:
    """Yield the phases of a pruner in order, and finalize it after the last one.

    See ``Pruner.phases``.
    """
    done, steps = pruner.phase_done
    names = phase_names(pruner, epochs, steps_per_epoch)
    makers = _makers(make_optimizer, names)
    if not (wrap is None or callable(wrap)):
        raise TypeError(f"wrap is {wrap!r}; give a function of the network, as DDP.")
    optimizer: Any = None
    scheduler: Any = None
    for name in names[_place(names, done) :]:
        resumed = name == done and steps > 0
        groups = pruner.set_phase(name)
        model = pruner.model if wrap is None else wrap(pruner.model)
        if optimizer is None or name in makers:
            former, made = optimizer, makers.get(name, makers[names[0]])(groups)
            optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
            if former is not None and "prune" not in names:
                take_over_state(former, optimizer)
        if name == "finetune":
            count_steps(pruner, optimizer)
        else:
            pruner.follow(optimizer, epochs=epochs[name], steps_per_epoch=steps_per_epoch)
        first = steps // steps_per_epoch if resumed else 0
        yield PhaseRun(name, model, optimizer, scheduler, epochs[name], first, resumed)
    pruner.finalize()


def _place(names: Sequence[PhaseName], done: str) -> int:
    """Return the index of the phase that a pruner continues in; their number if all are over.

    Args:
        names: the phases of this run, in order.
        done: the last phase that made steps, or the one that is next.
    """
    order = get_args(PhaseName)
    over = [name for name in names if order.index(name) < order.index(done)]
    return len(over)


def take_over_state(former: Any, optimizer: Any) -> None:
    """Give an optimizer the state, such as momentum, that a former one has of the same parameters.

    Optimizers of another class than the former ones, or of another number, begin anew.

    Args:
        former: optimizer, or list of optimizers, of the phase before.
        optimizer: optimizer, or list of optimizers, of this phase; changed in place.
    """
    before, now = innermost_optimizers(former), innermost_optimizers(optimizer)
    if [type(each) for each in before] != [type(each) for each in now]:
        return
    states = {p: state for each in before for p, state in each.state.items()}
    for each in now:
        for parameter in (p for group in each.param_groups for p in group["params"]):
            if parameter in states:
                each.state[parameter] = states[parameter]


def count_steps(pruner: Phased, optimizer: Any) -> None:
    """Count the steps of the fine-tuning phase, so that a saved state knows its epoch."""

    def hook(own: torch.optim.Optimizer, *_: Any) -> None:
        if not step_was_skipped(own):
            pruner.count_step()

    innermost_optimizers(optimizer)[-1].register_step_post_hook(hook)


def _makers(
    make_optimizer: MakeOptimizer | Mapping[str, MakeOptimizer], names: Sequence[PhaseName]
) -> dict[str, MakeOptimizer]:
    """Return the function that makes the optimizer of each phase, by name of the phase.

    Raises:
        TypeError: if it is no function, but an optimizer, say.
        ValueError: naming a phase without a function.
    """
    given = make_optimizer
    found: dict[str, MakeOptimizer] = (
        dict(given) if isinstance(given, Mapping) else {name: given for name in names}
    )
    needed = names[:1] if "prune" not in names else names  # the other one trains the same
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise ValueError(f"make_optimizer has no function for {lacking[0]!r}; give one per phase.")
    wrong = [made for made in found.values() if not callable(made)]
    if wrong:
        raise TypeError(
            f"make_optimizer is a {type(wrong[0]).__name__}; each phase trains other parameters: "
            "give a function that makes an optimizer of param groups, such as "
            "lambda params: torch.optim.SGD(params, lr=0.1)."
        )
    return found


def phase_names(pruner: Phased, epochs: Mapping[str, int], steps_per_epoch: int) -> list[PhaseName]:
    """Return the names of the phases, in order.

    Raises:
        TypeError: if ``epochs`` is no mapping.
        ValueError: naming an unknown phase or an illegal number, or if the phase is missing in
            which a pruner learns or shrinks the network.
    """
    legal, name = pruner.order, type(pruner).__name__
    if not isinstance(epochs, Mapping):
        raise TypeError(f"epochs is {epochs!r}; give a dict, as {dict.fromkeys(legal, 5)}.")
    numbers = [*epochs.values(), steps_per_epoch]
    if set(epochs) - set(legal) or not all(is_whole(n) and n > 0 for n in numbers):
        raise ValueError(
            f"epochs is {dict(epochs)} and steps_per_epoch is {steps_per_epoch!r}; legal: whole "
            f"numbers above 0, for {' and '.join(map(repr, legal))}."
        )
    if "prune" in legal and "prune" not in epochs:
        raise ValueError(
            f"epochs is {dict(epochs)}, without 'prune', in which {name} learns; "
            "give it, or take MagnitudePruner."
        )
    if "shrink" in legal and "shrink" not in epochs:
        raise ValueError(
            f"epochs is {dict(epochs)}, without 'shrink', in which the density of {name} falls "
            "along its schedule; give it, or attach the pruner with schedule='at_once'."
        )
    return [name for name in legal if name in epochs]
