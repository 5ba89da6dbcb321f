"""Build auto-LiRPA's BoundedModule for a network, update it from the network, check its bounds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugin.adapters.auto_lirpa.shims import (
    default_dtype,
    learning_at_the_ends,
    readable_trace,
)
from robust_plugin.attacks.logits import check_logits
from robust_plugin.certificates.checks import check_bounds, refuse_apart
from robust_plugin.certificates.ibp import ibp_margins
from robust_plugin.certificates.plain_copy import PlainCopy
from robust_plugin.copies.convolutions import Unrolled, with_matrices
from robust_plugin.threat.model import ThreatModel


class CopyBounds:
    """auto-LiRPA's bounds for one network, computed on a copy without masks.

    The copy is updated from the network at each use.

    Args:
        model: network with or without a pruner attached; it is not changed.
        x: example inputs, shape [B, ...] with B at least 1.
        method: name of the bounding method (see ``LiRPA``).
        iterations: number of optimisation steps of alpha-CROWN.
        library: the module auto_LiRPA.

    Attributes:
        form: layers, input shape, dtype and device for which the bounds were built.
        learns: True once the network is known to have no custom backward pass, which the library
            would lose; before that, bounds with a graph must not be used.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, method: str, iterations: int, library: Any
    ) -> None:
        self.method, self.form, self.library = method, form_of(model, x), library
        self.learns = False
        self.copy = PlainCopy(model)
        self.network, self.matrices = self.copy.network, dict[str, Tensor]()
        # alpha-CROWN makes many passes and needs no gradient to the weights, so that faster
        # convolutions pay off.
        if method.startswith("alpha"):
            self.network, self.matrices = with_matrices(self.copy.network, x[:1])
        slopes = "same-slope" if method == "same-slope" else "adaptive"
        options = {
            "conv_mode": "matrix",
            # "relu" is the key of release 0.3, the other that of 0.7; each ignores the other's.
            "relu": slopes,
            "activation_bound_option": slopes,
            "sparse_features_alpha": False,
            "sparse_spec_alpha": False,
            "optimize_bound_args": {"iteration": iterations, "lr_alpha": 0.5},
        }
        with _failures(method), readable_trace():
            dummy = torch.zeros_like(x[:1])
            self.module = library.BoundedModule(self.network, dummy, options, device=x.device)
        self.module.eval()
        self.classes = int(self.module.final_shape[1])  # read now: alpha-CROWN overwrites it

    def margins(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, method: str
    ) -> Tensor:
        """Return lower bounds of f_y - f_j over the threat model; shape [B, classes].

        f_j is the logit of class j. Where gradients are enabled, the bounds have a graph to the
        network's parameters, except with alpha-CROWN.

        Args:
            model: the network that this object was built for; its current weights are used.
            x: inputs, shape [B, ...].
            y: labels, shape [B].
            threat: threat model with norm Linf.
            method: name of the bounding method (see ``LiRPA``).

        Raises:
            ValueError: for labels out of range, or if the library cannot bound the network.
        """
        check_logits(x.new_zeros(len(y), self.classes), y)

        def compute() -> Tensor:
            self._load_buffers()
            # The library sets requires_grad of its weights by the training flag of their nodes.
            for node in self.module._modules.values():
                node.training = torch.is_grad_enabled() and hasattr(node, "param")
            return self._margins(x.detach(), y, threat, method)

        graph = torch.is_grad_enabled() and not method.startswith("alpha")
        with _failures(method), torch.set_grad_enabled(graph), default_dtype(x.dtype):
            return self.copy.following(model, compute)

    def check(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        """Raise a ValueError unless the library's bounds are right for a few points.

        Its interval bounds must equal those of this package, and the bounds by the chosen method
        must pass the tests of ``certificates.checks.check_bounds``.

        Args:
            model: the network that this object was built for.
            x: inputs, shape [B, ...]; two points are enough.
            y: labels, shape [B].
            threat: threat model with norm Linf.
        """
        with torch.no_grad():
            interval = ibp_margins(model, x, y, threat)
            found = self.margins(model, x, y, threat, "IBP")
        refuse_apart(found, interval, "auto-LiRPA's IBP")

        def bounds(_: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
            # At eps = 0 alpha-CROWN has no slope to optimise, and CROWN gives the same bounds.
            learns = self.method.startswith("alpha") and threat.eps == 0
            return self.margins(model, x, y, threat, "CROWN" if learns else self.method)

        name = f"auto-LiRPA's {self.method}"
        # Slopes reach their limits within a few steps of size 0.5, so five are enough here.
        with _at_most_iterations(self.module.bound_opts["optimize_bound_args"], 5):
            check_bounds(
                bounds, self.copy.network, x, y, reference=ibp_margins, threat=threat, name=name
            )

    def _load_buffers(self) -> None:
        """Copy the buffers of the copy without masks into the library's BoundedModule.

        With alpha-CROWN, the matrices that replace convolutions are updated first.
        """
        for name, maps in self.matrices.items():
            matrix, layer = (n.get_submodule(name) for n in (self.network, self.copy.network))
            cast(Unrolled, matrix).follow(cast(nn.Conv2d, layer), maps)
        own = dict(self.network.named_buffers())
        for node in self.module._modules.values():
            # The module has clones of the buffers. They are replaced and not written over, because
            # an earlier graph may need their values.
            if isinstance(getattr(node, "buffer", None), Tensor) and node.ori_name in own:
                node.buffer = own[node.ori_name].clone()

    def _margins(self, x: Tensor, y: Tensor, threat: ThreatModel, method: str) -> Tensor:
        # The library's matrix C has the rows e_y - e_j, one for each class j other than y.
        others = torch.arange(self.classes, device=y.device).expand(len(y), -1)
        others = others[others != y[:, None]].view(len(y), -1)
        eye = torch.eye(self.classes, device=x.device, dtype=x.dtype)
        lower = (x - threat.eps).clamp(threat.low, threat.high)
        upper = (x + threat.eps).clamp(threat.low, threat.high)
        ball = self.library.PerturbationLpNorm(norm=np.inf, eps=threat.eps, x_L=lower, x_U=upper)
        # Made last, because any operation on a BoundedTensor, even a slice, drops the ball.
        inputs = self.library.BoundedTensor(x, ball)
        found = self._lower(inputs, eye[y][:, None] - eye[others], method)
        return torch.zeros_like(eye[y]).scatter(1, others, found.to(x.dtype))

    def _lower(self, inputs: Any, rows: Tensor, method: str) -> Tensor:
        """Return lower bounds of the margins ``rows @ logits``; shape [B, classes - 1].

        Args:
            inputs: the library's BoundedTensor, shape [B, ...].
            rows: for each point, the vectors e_y - e_j of all classes j other than y, shape [B,
                classes - 1, classes].
            method: name of the bounding method (see ``LiRPA``).
        """

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
            if "does not require grad" in str(error):  # no ReLU is unstable, so there are no slopes
                return crown
            raise


def form_of(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """Return what a BoundedModule depends on: if it differs, a new module must be built.

    Args:
        model: the network.
        x: inputs, shape [B, ...].

    Returns:
        The layers as text, the shape of an input without B, the dtype and the device.
    """
    return str(model), x.shape[1:], x.dtype, x.device


@contextmanager
def _failures(method: str) -> Iterator[None]:
    """Within the context, turn any error of the library into a ValueError with one sentence.

    Args:
        method: name of the bounding method, for the sentence.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and "auto-LiRPA" in str(error):
            raise
        raise ValueError(
            f"auto-LiRPA cannot bound this network by {method} ({type(error).__name__}: {error}); "
            "take another method, or IBP of the core."
        ) from error


@contextmanager
def _at_most_iterations(options: dict[str, Any], most: int) -> Iterator[None]:
    """Within the context, limit the number of optimisation steps of alpha-CROWN.

    Args:
        options: the library's ``optimize_bound_args``.
        most: largest number of steps.
    """
    before = options["iteration"]
    options["iteration"] = min(most, before)
    try:
        yield
    finally:
        options["iteration"] = before


def _intermediate_key(module: Any) -> str:
    """Return the name of the argument of ``compute_bounds`` that takes bounds of inner layers.

    Releases of auto-LiRPA have different names for it.

    Args:
        module: the library's BoundedModule.
    """
    names = inspect.signature(module.compute_bounds).parameters
    return "interm_bounds" if "interm_bounds" in names else "intermediate_layer_bounds"
