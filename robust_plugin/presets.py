"""The three papers' corners of the Pruner: magnitude, HYDRA and HARP."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from robust_plugin.budget import Unit
from robust_plugin.control import Control
from robust_plugin.groups import Group
from robust_plugin.phases import Learnable
from robust_plugin.pruner import Pruner
from robust_plugin.rates import Rates
from robust_plugin.scores import Scores


class MagnitudePruner(Pruner):
    """Least weight magnitude (LWM), one-shot or iterative (Sehwag 2019, section 3).

    Keeps the largest |w| of each layer. ``rates="erk"`` or ``"lamp"`` is the baseline to beat,
    ``"global"`` ranks all layers together.
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
            exclude=exclude,
            example_inputs=example_inputs,
        )


class HydraPruner(Pruner):
    """Learned scores at given rates (HYDRA, Sehwag et al. 2020): s = argmin E[L_robust(w m(s))]."""

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
            exclude=exclude,
            example_inputs=example_inputs,
        )


class HarpPruner(Pruner):
    """Learned scores and learned rates (HARP, Zhao and Wressnegger 2023).

    ``learn=("rates",)`` is its rate-only mode; ``pattern="n:4"`` learns which n of every 4 each
    layer keeps.
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
            exclude=exclude,
            example_inputs=example_inputs,
        )
