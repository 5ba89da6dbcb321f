"""Proofs and certified training with auto-LiRPA (Xu et al. 2020): CROWN and its family.

The library bounds a plain twin of the network, never one that carries masks: its release 0.3 gives
wrong bounds where a mask is in its trace. Convolutions are always in matrix mode, because the
default, patches, is unsound for dilated and for grouped ones. Every network is checked before its
first bound is believed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust_plugin.adapters.auto_lirpa.module import TwinBounds, form_of
from robust_plugin.adapters.auto_lirpa.shims import accept_remove_duplicate, importable
from robust_plugin.attacks.contract import Attack
from robust_plugin.attacks.logits import check_pairs
from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.certificates.checks import checked_margins, proved
from robust_plugin.certificates.contract import Prover
from robust_plugin.certificates.ibp import IBP, ibp_margins
from robust_plugin.certificates.propagation import traced
from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.distributed import innermost
from robust_plugin.threat.model import ThreatModel, check_threat

Method = Literal["IBP", "CROWN-IBP", "CROWN", "same-slope", "alpha-CROWN", "alpha-CROWN-fixed"]

# Release 0.3 forgets an L2 ball at any operation before the first linear layer, a normalisation
# say, and bounds a point instead.
_NORM = "the threat model's norm is {}; LiRPA takes Linf. L2: IBP(threat), or smoothing."


@dataclass(frozen=True)
class LiRPA:
    """Proofs by linear relaxation: ``certifier(model, x, y) -> bool tensor``.

    Attributes:
        threat: Linf; eps and bounds.
        method: ``"IBP"``; ``"CROWN-IBP"``, one backward pass over IBP's intermediate bounds (Zhang
            et al. 2020); ``"CROWN"`` (Zhang et al. 2018); ``"same-slope"``, CROWN with one slope
            for both sides, which is Fast-Lin and MixTrain's symbolic interval; ``"alpha-CROWN"``,
            slopes optimised (Xu et al. 2021); ``"alpha-CROWN-fixed"``, the same over CROWN's
            intermediate bounds, many times cheaper.
        iterations: of alpha-CROWN.
        batch_size: points proved at a time; CROWN's memory grows with it.

    Raises:
        TypeError: for a threat that is no threat model.
        ValueError: for an unknown method, a norm other than Linf, or counts below 1.
        ImportError: when called without the library.
    """

    threat: ThreatModel
    method: Method = "CROWN-IBP"
    iterations: int = 20
    batch_size: int = 32
    _built: WeakKeyDictionary[nn.Module, TwinBounds] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method is {self.method!r}; legal: {', '.join(get_args(Method))}.")
        if check_threat(self.threat).norm != "Linf":
            raise ValueError(_NORM.format(self.threat.norm))
        if min(self.iterations, self.batch_size) < 1:
            raise ValueError(
                f"iterations is {self.iterations} and batch_size {self.batch_size}; legal: at "
                "least 1."
            )

    @property
    def name(self) -> str:
        """The row's name in a report."""
        return self.method

    def check_library(self) -> None:
        """Raise an ImportError that says what to type, unless auto-LiRPA is there."""
        _library()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return which points are proved, bool of shape [B]."""
        return proved(self.margins(model, x, y), y)

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of f_y - f_j of shape [B, classes] (see ``checked_margins``)."""
        self.threat.check_inputs(x)  # an empty batch, too
        check_pairs(x, y)
        size = self.batch_size
        found = [
            checked_margins(self.bounds, model, x[i : i + size], y[i : i + size], self.threat)
            for i in range(0, len(x), size)
        ]
        return torch.cat(found)

    def bounds(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel | None = None
    ) -> Tensor:
        """Return lower bounds of f_y - f_j with a graph to weights, scores and rates.

        For objectives. BatchNorm uses its running statistics, whatever the mode, but inside
        ``clean_pass`` as in ``ibp_margins``.

        Args:
            model: with or without a pruner attached; its modes and gradients are left alone.
            x: shape [B, ...], within [low, high].
            y: shape [B].
            threat: instead of the certifier's own, while eps ramps up.

        Returns:
            Tensor: shape [B, classes], zero at j = y. alpha-CROWN has no graph.

        Raises:
            ValueError: for whatever ``ibp_margins`` refuses, what the library cannot bound, and
                bounds that the self-check finds wrong.
        """
        threat = threat or self.threat
        if threat.norm != "Linf":
            raise ValueError(_NORM.format(threat.norm))
        threat.check_inputs(x)
        check_pairs(x, y)
        model = innermost(model)
        built = self._built.get(model)
        if built is None or built.form != form_of(model, x):
            few = model, x[:2].detach(), y[:2]
            with exact(x):
                with torch.no_grad():
                    ibp_margins(*few, self.threat)  # which names a layer that cannot be bounded
                built = TwinBounds(model, few[1], self.method, self.iterations, _library())
                built.check(*few, self.threat)
            self._built[model] = built
        graph = torch.is_grad_enabled() and not self.method.startswith("alpha")
        if graph and not built.learns:
            traced(model)  # which refuses a backward pass that the library would lose
            built.learns = True
        # All methods give the same of a single point, the margins themselves.
        method = "IBP" if threat.eps == 0 else self.method
        with torch.autocast(x.device.type, enabled=False):  # as in ibp_margins
            return built.margins(model, x, y, threat, method)


def proof_stages(threat: ThreatModel) -> dict[str, Prover | Attack]:
    """Return the stages of ``verify``, cheap before expensive: IBP, PGD, CROWN, alpha-CROWN.

    The last, with slopes of all inner layers, costs more than the others together and adds few
    points; leave it out where that matters.
    """
    return {
        "IBP": IBP(threat),
        "PGD": pgd(threat, steps=40, loss="margin", restarts=3, keep="best"),
        "CROWN": LiRPA(threat, "CROWN"),
        "alpha-CROWN-fixed": LiRPA(threat, "alpha-CROWN-fixed"),
        "alpha-CROWN": LiRPA(threat, "alpha-CROWN"),
    }


@cache
def _library() -> Any:
    try:
        with importable():
            import auto_LiRPA
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is missing: pip install --no-deps auto-LiRPA==0.3 appdirs packaging "
            "(the torch<1.13 that it pins is not needed)"
        ) from error
    logging.getLogger("auto_LiRPA").setLevel(logging.CRITICAL)  # it logs what it also raises
    accept_remove_duplicate(auto_LiRPA.BoundedModule)
    return auto_LiRPA
