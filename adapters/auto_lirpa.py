"""Proofs and certified training with auto-LiRPA (Xu et al. 2020): CROWN and its family.

The library bounds a plain twin of the network, never one that carries masks: its release 0.3 gives
wrong bounds where a mask is in its trace. Convolutions are always in matrix mode, because the
default, patches, is unsound for dilated and for grouped ones. Every network is checked before its
first bound is believed.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast, get_args
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugin.adapters.auto_lirpa_shims import (  # noqa: TID251  (its own companion)
    accept_remove_duplicate,
    default_dtype,
    importable,
    learning_at_the_ends,
    readable_trace,
)
from robust_plugin.attacks import pgd
from robust_plugin.bounds import IBP, checked_margins, ibp_margins, proved
from robust_plugin.convolutions import Unrolled, maps_seen, unrolled
from robust_plugin.guard import Attack, check_logits, unwrapped
from robust_plugin.soundness import check_bounds, refuse_apart
from robust_plugin.threat import ThreatModel
from robust_plugin.twin import Twin
from robust_plugin.verdicts import Prover

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
        ValueError: for an unknown method, a norm other than Linf, or counts below 1.
        ImportError: when called without the library.
    """

    threat: ThreatModel
    method: Method = "CROWN-IBP"
    iterations: int = 20
    batch_size: int = 32
    _built: WeakKeyDictionary[nn.Module, _Module] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method is {self.method!r}; legal: {', '.join(get_args(Method))}.")
        if self.threat.norm != "Linf":
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

        For objectives. BatchNorm uses its running statistics, whatever the mode.

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
        model = unwrapped(model)
        built = self._built.get(model)
        if built is None or built.form != _form(model, x):
            few = model, x[:2].detach(), y[:2]
            with torch.no_grad():
                ibp_margins(*few, self.threat)  # which names a layer that cannot be bounded
            built = _Module(model, few[1], self.method, self.iterations)
            built.check(*few, self.threat)
            self._built[model] = built
        return built.margins(model, x, y, threat)


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


class _Module:
    """The library's module over the twin of one network."""

    def __init__(self, model: nn.Module, x: Tensor, method: Method, iterations: int) -> None:
        self.method, self.form = method, _form(model, x)
        self.twin = Twin(model)
        self.network, self.matrices = self.twin.network, dict[str, Tensor]()
        if method.startswith("alpha"):  # many passes, and no gradient to the weights
            self.network, self.matrices = _with_matrices(self.twin.network, x[:1])
        slopes = "same-slope" if method == "same-slope" else "adaptive"
        options = {
            "conv_mode": "matrix",
            # One key for release 0.3, one for 0.7; either ignores the other's.
            "relu": slopes,
            "activation_bound_option": slopes,
            "sparse_features_alpha": False,
            "sparse_spec_alpha": False,
            "optimize_bound_args": {"iteration": iterations, "lr_alpha": 0.5},
        }
        library = _library()
        with _failures(method), readable_trace():
            dummy = torch.zeros_like(x[:1])
            self.module = library.BoundedModule(self.network, dummy, options, device=x.device)
        self.module.eval()
        self.classes = int(self.module.final_shape[1])  # which alpha-CROWN writes over

    def margins(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, method: str = ""
    ) -> Tensor:
        """Return lower bounds of f_y - f_j; shape [B, classes]."""
        method = method or self.method
        check_logits(x.new_zeros(len(y), self.classes), y)

        def compute() -> Tensor:
            self._load_buffers()
            # The library sets its weights' requires_grad by the nodes' training flag.
            for node in self.module._modules.values():
                node.training = torch.is_grad_enabled() and hasattr(node, "param")
            return self._margins(x.detach(), y, threat, method)

        graph = torch.is_grad_enabled() and not method.startswith("alpha")
        with _failures(method), torch.set_grad_enabled(graph), default_dtype(x.dtype):
            return self.twin.following(model, compute)

    def check(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        """Raise a ValueError unless the library's bounds of a few points are right."""
        with torch.no_grad():
            interval = ibp_margins(model, x, y, threat)
            found = self.margins(model, x, y, threat, "IBP")
        refuse_apart(found, interval, "auto-LiRPA's IBP")

        def bounds(_: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
            # alpha-CROWN starts as CROWN, and has no slope to learn where nothing moves.
            learns = self.method.startswith("alpha") and threat.eps == 0
            return self.margins(model, x, y, threat, "CROWN" if learns else self.method)

        name = f"auto-LiRPA's {self.method}"
        # Slopes reach their limits within a few steps, whose length is .5.
        options = self.module.bound_opts["optimize_bound_args"]
        with mock.patch.dict(options, iteration=min(5, options["iteration"])):
            check_bounds(bounds, self.twin.network, x, y, threat=threat, name=name)

    def _load_buffers(self) -> None:
        for name, maps in self.matrices.items():
            matrix, layer = (n.get_submodule(name) for n in (self.network, self.twin.network))
            cast(Unrolled, matrix).follow(cast(nn.Conv2d, layer), maps)
        own = dict(self.network.named_buffers())
        for node in self.module._modules.values():
            # It has clones of the buffers, and an earlier graph may need those that it has.
            if isinstance(getattr(node, "buffer", None), Tensor) and node.ori_name in own:
                node.buffer = own[node.ori_name].clone()

    def _margins(self, x: Tensor, y: Tensor, threat: ThreatModel, method: str) -> Tensor:
        # One row e_y - e_j for each j but y.
        others = torch.arange(self.classes, device=y.device).expand(len(y), -1)
        others = others[others != y[:, None]].view(len(y), -1)
        eye = torch.eye(self.classes, device=x.device, dtype=x.dtype)
        lower = (x - threat.eps).clamp(threat.low, threat.high)
        upper = (x + threat.eps).clamp(threat.low, threat.high)
        library = _library()
        ball = library.PerturbationLpNorm(norm=np.inf, eps=threat.eps, x_L=lower, x_U=upper)
        # Made last: any operation on it, a slice even, would drop the ball.
        inputs = library.BoundedTensor(x, ball)
        found = self._lower(inputs, eye[y][:, None] - eye[others], method)
        return torch.zeros_like(eye[y]).scatter(1, others, found.to(x.dtype))

    def _lower(self, inputs: Any, rows: Tensor, method: str) -> Tensor:
        def bounds(method: str, **given: Any) -> Tensor:
            lower: Tensor = self.module.compute_bounds(
                x=(inputs,), C=rows, method=method, bound_upper=False, **given
            )[0]
            return lower

        if method in ("IBP", "CROWN-IBP"):
            return bounds(method)
        if not method.startswith("alpha"):
            return bounds("CROWN")
        crown, given = bounds("CROWN"), {}
        if method == "alpha-CROWN-fixed":
            layers = [n.inputs[0] for n in self.module.optimizable_activations if n.perturbed]
            key = _intermediate_key(self.module)
            given = {key: {layer.name: [layer.lower, layer.upper] for layer in layers}}
        try:
            with torch.enable_grad(), learning_at_the_ends():
                return torch.maximum(crown, bounds("CROWN-Optimized", **given).detach())
        except RuntimeError as error:
            if "does not require grad" in str(error):  # no ReLU is unstable: nothing to optimise
                return crown
            raise


def _with_matrices(network: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy that shares the weights, convolutions on small maps as matrices; and their inputs.

    The library bounds every neuron by itself: a convolution has one small map for each of them.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    short, found = copy.deepcopy(network, shared), {}
    for name, maps in maps_seen(network, x).items():
        matrix = unrolled(cast(nn.Conv2d, network.get_submodule(name)), maps)
        if matrix is not None:
            parent, _, key = name.rpartition(".")
            setattr(short.get_submodule(parent), key, matrix)
            found[name] = maps
    return short, found


def _form(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """What a module is built for: layers, inputs' shape, dtype and device."""
    return str(model), x.shape[1:], x.dtype, x.device


@contextmanager
def _failures(method: str) -> Iterator[None]:
    """The library's errors, of any kind, as one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and "auto-LiRPA" in str(error):
            raise
        raise ValueError(
            f"auto-LiRPA cannot bound this network by {method} ({type(error).__name__}: {error}); "
            "take another method, or IBP of the core."
        ) from error


def _intermediate_key(module: Any) -> str:
    """What the release calls given bounds of inner layers."""
    names = inspect.signature(module.compute_bounds).parameters
    return "interm_bounds" if "interm_bounds" in names else "intermediate_layer_bounds"


@cache
def _library() -> Any:
    try:
        with importable():
            import auto_LiRPA  # noqa: TID251
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is missing: pip install --no-deps auto-LiRPA==0.3 appdirs packaging "
            "(the torch<1.13 that it pins is not needed)"
        ) from error
    logging.getLogger("auto_LiRPA").setLevel(logging.CRITICAL)  # it logs what it also raises
    accept_remove_duplicate(auto_LiRPA.BoundedModule)
    return auto_LiRPA
