"""Proofs and certified training with auto-LiRPA (Xu et al. 2020): CROWN and related methods.

The library bounds a copy of the network without masks, because its release 0.3 gives wrong bounds
for networks that it traces with masks. Convolutions always use the library's matrix mode, because
its default, patches, is unsound for dilated and grouped convolutions. Each network's bounds are
checked before their first use.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust_plugin.adapters.auto_lirpa.module import CopyBounds, form_of
from robust_plugin.adapters.auto_lirpa.shims import accept_remove_duplicate, importable
from robust_plugin.attacks.contract import Attack
from robust_plugin.attacks.logits import check_pairs
from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.certificates.checks import checked_margins, proved
from robust_plugin.certificates.contract import Prover
from robust_plugin.certificates.ibp import IBP, ibp_margins
from robust_plugin.certificates.propagation import traced
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.distributed import innermost
from robust_plugin.runtime.values import check_call, is_whole
from robust_plugin.threat.model import ThreatModel, check_threat

Method = Literal["IBP", "CROWN-IBP", "CROWN", "same-slope", "alpha-CROWN", "alpha-CROWN-fixed"]

# Release 0.3 forgets an L2 ball at any operation before the first linear layer, such as a
# normalisation, and bounds a single point instead.
_NORM = "the threat model's norm is {}; LiRPA takes Linf. L2: IBP(threat), or smoothing."


@explain_wrong_calls
@dataclass(frozen=True)
class LiRPA:
    """Proofs by linear relaxation, as ``certifier(model, x, y)`` for a batch of points.

    Attributes:
        threat: threat model with norm Linf.
        method: name of the bounding method. ``"IBP"``: interval bounds. ``"CROWN-IBP"``: one
            backward pass over IBP's intermediate bounds (Zhang et al. 2020). ``"CROWN"``: a
            backward pass for the bounds of every layer (Zhang et al. 2018). ``"same-slope"``: CROWN
            with one slope for lower and upper bounds, which is Fast-Lin and MixTrain's symbolic
            interval. ``"alpha-CROWN"``: CROWN with optimised slopes (Xu et al. 2021).
            ``"alpha-CROWN-fixed"``: alpha-CROWN that keeps CROWN's intermediate bounds, many times
            faster than alpha-CROWN.
        iterations: number of optimisation steps of alpha-CROWN.
        batch_size: number of points that are bounded at once; CROWN's memory grows with it.

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for an unknown method, a norm other than Linf, or ``iterations`` or
            ``batch_size`` below 1.
        ImportError: raised by a call of the certifier if auto-LiRPA is not installed.
    """

    threat: ThreatModel
    method: Method = "CROWN-IBP"
    iterations: int = 20
    batch_size: int = 32
    _built: WeakKeyDictionary[nn.Module, CopyBounds] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method is {self.method!r}; legal: {', '.join(get_args(Method))}.")
        if check_threat(self.threat).norm != "Linf":
            raise ValueError(_NORM.format(self.threat.norm))
        if not all(is_whole(each) and each >= 1 for each in (self.iterations, self.batch_size)):
            raise ValueError(
                f"iterations is {self.iterations!r} and batch_size {self.batch_size!r}; legal: at "
                "least 1, whole."
            )

    @property
    def name(self) -> str:
        """The name of the certifier in reports, that of its method."""
        return self.method

    def check_library(self) -> None:
        """Raise an ImportError with the install command unless auto-LiRPA is installed."""
        _library()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return whether each point is proved robust; bool, shape [B].

        Args:
            model: network with or without a pruner attached; it is bounded in evaluation mode.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].

        Raises:
            ValueError: for everything that ``margins`` refuses.
        """
        return proved(self.margins(model, x, y), y.long())

    def margins(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return lower bounds of f_y - f_j over the threat model, without a graph.

        f_j is the logit of class j. The bounds are computed in batches of ``batch_size``.

        Args:
            model: network with or without a pruner attached; it is bounded in evaluation mode.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].

        Returns:
            Tensor: shape [B, classes], zero at j = y.

        Raises:
            ValueError: for everything that ``bounds`` refuses, logits that are not finite or of
                half precision, forward hooks, and bounds that the network's own margins contradict.
        """
        check_call(model, x, y)  # it also raises for an empty batch
        self.threat.check_inputs(x)
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
        """Return lower bounds of f_y - f_j that training objectives can differentiate.

        f_j is the logit of class j. The graph leads to the weights, the scores and the learned
        layer densities. BatchNorm uses its running statistics in either mode, except inside
        ``clean_pass`` (training by bounds), where a BatchNorm in training mode uses those of the
        clean batch.

        Args:
            model: network with or without a pruner attached; its training flags and gradients do
                not change.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].
            threat: threat model that replaces the certifier's own, for objectives whose eps grows
                during training; None for the certifier's own.

        Returns:
            Tensor: shape [B, classes], zero at j = y. With alpha-CROWN it has no graph.

        Raises:
            ValueError: for inputs outside [low, high], labels out of range, a norm other than
                Linf, a network that interval bounds or the library cannot bound, and bounds that
                fail the checks before the first use.
        """
        threat = threat or self.threat
        if threat.norm != "Linf":
            raise ValueError(_NORM.format(threat.norm))
        check_call(model, x, y)
        threat.check_inputs(x)
        check_pairs(x, y)
        y = y if y.is_floating_point() else y.long()  # floats are refused below
        model = innermost(model)
        built = self._built.get(model)
        if built is None or built.form != form_of(model, x):
            few = model, x[:2].detach(), y[:2]
            with exact(x):
                with torch.no_grad():
                    ibp_margins(*few, self.threat)  # its error names a layer without a rule
                built = CopyBounds(model, few[1], self.method, self.iterations, _library())
                built.check(*few, self.threat)
            self._built[model] = built
        graph = torch.is_grad_enabled() and not self.method.startswith("alpha")
        if graph and not built.learns:
            traced(model)  # raises for a custom backward pass, which the library would lose
            built.learns = True
        # At eps = 0 all methods give the margins themselves.
        method = "IBP" if threat.eps == 0 else self.method
        with torch.autocast(x.device.type, enabled=False):  # as in ibp_margins
            return built.margins(model, x, y, threat, method)


@explain_wrong_calls
def proof_methods(threat: ThreatModel) -> dict[str, Prover | Attack]:
    """Return provers and an attack (PGD) for ``verify``, by name, from the fastest to the slowest.

    The last one, ``"alpha-CROWN"``, also optimises the slopes of the intermediate bounds. It takes
    more time than all others together and verifies few further points; delete it from the dict to
    save that time.

    Args:
        threat: threat model with norm Linf.
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
    """Return the module auto_LiRPA; the first call imports and patches it.

    Raises:
        ImportError: if auto-LiRPA is not installed; the message has the install command.
    """
    try:
        with importable():
            import auto_LiRPA
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is missing: pip install --no-deps auto-LiRPA==0.3 appdirs packaging "
            "(the torch<1.13 that it pins is not needed)"
        ) from error
    # The library logs every error that it also raises.
    logging.getLogger("auto_LiRPA").setLevel(logging.CRITICAL)
    accept_remove_duplicate(auto_LiRPA.BoundedModule)
    return auto_LiRPA
