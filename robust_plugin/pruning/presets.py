"""Magnitude pruning, HYDRA, HARP and gradual pruning, each a ``Pruner`` with some choices made."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from robust_plugin.budget.budget import Unit
from robust_plugin.budget.control import Control
from robust_plugin.budget.rates import Rates
from robust_plugin.budget.schedules import Schedule
from robust_plugin.masks.groups import Group
from robust_plugin.pruning.phases import Learnable
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.pruning.scores import Scores
from robust_plugin.runtime.calls import explain_wrong_calls


@explain_wrong_calls
class MagnitudePruner(Pruner):
    """Least weight magnitude (LWM), one-shot, iterative (Sehwag 2019, section 3) or gradual.

    Each layer keeps its weights of largest ``|w|``. With the layer densities ``rates="erk"`` or
    ``"lamp"`` this is a stronger baseline than with the same density for every layer;
    ``"global"`` ranks the weights of all layers together. ``schedule="geometric"`` prunes gradually
    (Zhu and Gupta 2017), which is stronger again. The arguments are those of ``Pruner``.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float | None = None,
        *,
        rates: Rates = "uniform",
        budget: Unit = "params",
        pattern: str | None = None,
        groups: Sequence[Group] | None = None,
        round_to: int = 1,
        schedule: Schedule = "at_once",
        exclude: Collection[str | nn.Module] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        super().__init__(
            model,
            density,
            rates=rates,
            budget=budget,
            pattern=pattern,
            groups=groups,
            round_to=round_to,
            schedule=schedule,
            exclude=exclude,
            example_inputs=example_inputs,
        )


@explain_wrong_calls
class HydraPruner(Pruner):
    """Learned scores at given layer densities (HYDRA, Sehwag et al. 2020).

    The scores are s = argmin E[L_robust(w m(s))], where w are the pre-trained weights and m(s) is
    the mask of the largest ``|s|``. The arguments are those of ``Pruner``.

    The example keeps two of every four weights.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> pruner = HydraPruner(model, pattern="2:4")
    >>> pruner.kept, pruner.densities
    (320, {'1.weight': 0.5})
    """

    def __init__(
        self,
        model: nn.Module,
        density: float | None = None,
        *,
        scores: Scores = "scaled_magnitude",
        rates: Rates = "uniform",
        budget: Unit = "params",
        pattern: str | None = None,
        groups: Sequence[Group] | None = None,
        round_to: int = 1,
        schedule: Schedule = "at_once",
        last_cut: float = 0.5,
        exclude: Collection[str | nn.Module] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        super().__init__(
            model,
            density,
            learn={"scores"},
            scores=scores,
            rates=rates,
            budget=budget,
            pattern=pattern,
            groups=groups,
            round_to=round_to,
            schedule=schedule,
            last_cut=last_cut,
            exclude=exclude,
            example_inputs=example_inputs,
        )


@explain_wrong_calls
class HarpPruner(Pruner):
    """Learned scores and learned layer densities (HARP, Zhao and Wressnegger 2023).

    ``learn=("rates",)`` learns the densities alone, the rate-only mode of the paper. With
    ``pattern="n:4"`` each layer learns the number n of weights that it keeps of every 4. The
    arguments are those of ``Pruner``.

    The example keeps a quarter of 80 weights: one step of the prune phase, then finalize.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> pruner = HarpPruner(model, density=0.25)
    >>> optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    >>> pruner.follow(optimizer, epochs=1, steps_per_epoch=1)
    >>> loss = model(torch.rand(4, 8)).square().mean() + pruner.budget_penalty()
    >>> loss.backward()
    >>> optimizer.step()
    >>> optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.01)
    >>> pruner.kept, pruner.budget.full
    (20, 80)
    >>> pruner.finalize()
    >>> int(sum(layer.weight.count_nonzero() for layer in (model[0], model[2])))
    20
    """

    def __init__(
        self,
        model: nn.Module,
        density: float | None = None,
        *,
        learn: Collection[Learnable] = ("scores", "rates"),
        scores: Scores = "scaled_magnitude",
        rates: Rates = "uniform",
        budget: Unit = "params",
        control: Control = "held",
        gamma_step: float = 0.01,
        pattern: str | None = None,
        groups: Sequence[Group] | None = None,
        round_to: int = 1,
        schedule: Schedule = "at_once",
        last_cut: float = 0.5,
        exclude: Collection[str | nn.Module] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        super().__init__(
            model,
            density,
            learn=learn,
            scores=scores,
            rates=rates,
            budget=budget,
            control=control,
            gamma_step=gamma_step,
            pattern=pattern,
            groups=groups,
            round_to=round_to,
            schedule=schedule,
            last_cut=last_cut,
            exclude=exclude,
            example_inputs=example_inputs,
        )


@explain_wrong_calls
class GradualPruner(Pruner):
    """Density falls by magnitude while the weights train; the last cut is learned.

    In the shrink phase the density falls along ``schedule`` to ``density / last_cut``, at LAMP
    rates that are computed anew at each cut. In the prune phase the last cut is learned on the
    robust loss, as in HYDRA or, with ``learn=("scores", "rates")``, as in HARP. The arguments are
    those of ``Pruner``; ``rates=None`` is LAMP, or what a pattern such as ``"2:4"`` fixes.

    The example keeps a tenth of 80 weights, and rounds up in each layer.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> pruner = GradualPruner(model, density=0.1)
    >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
    >>> epochs = {"shrink": 2, "prune": 1, "finetune": 2}
    >>> for phase in pruner.phases(sgd, epochs=epochs, steps_per_epoch=1):
    ...     for epoch in phase:
    ...         phase.optimizer.zero_grad()
    ...         model(torch.rand(4, 8)).square().mean().backward()
    ...         phase.optimizer.step()
    ...     print(phase.name, pruner.kept)
    shrink 17
    prune 9
    finetune 9
    """

    def __init__(
        self,
        model: nn.Module,
        density: float | None = None,
        *,
        learn: Collection[Learnable] = frozenset({"scores"}),
        scores: Scores = "scaled_magnitude",
        rates: Rates | None = None,
        budget: Unit = "params",
        control: Control = "held",
        gamma_step: float = 0.01,
        pattern: str | None = None,
        groups: Sequence[Group] | None = None,
        round_to: int = 1,
        schedule: Schedule = "geometric",
        last_cut: float = 0.5,
        exclude: Collection[str | nn.Module] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        fixed = pattern is not None and not str(pattern).startswith("n:")
        super().__init__(
            model,
            density,
            learn=learn,
            scores=scores,
            rates=("uniform" if fixed else "lamp") if rates is None else rates,
            budget=budget,
            control=control,
            gamma_step=gamma_step,
            pattern=pattern,
            groups=groups,
            round_to=round_to,
            schedule=schedule,
            last_cut=last_cut,
            exclude=exclude,
            example_inputs=example_inputs,
        )
