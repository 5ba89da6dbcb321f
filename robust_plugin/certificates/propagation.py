"""Propagate a set of inputs through a network, operation by operation of its torch.fx trace.

``Propagation`` applies the rules of ``rules.py`` and ``operations.py`` to every node of the trace.
``refuse_unseen`` and ``traced`` raise for networks whose trace would not show all that they
compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune

from robust_plugin.attacks.logits import refuse_inputs
from robust_plugin.certificates.batch_norm import statistics_of
from robust_plugin.certificates.intervals import Ball, Bounded, Interval
from robust_plugin.certificates.operations import ALIASES, RELUS, through_call, works_in_place
from robust_plugin.certificates.rules import NORMS, through_layer
from robust_plugin.copies.tracing import OwnBackward, refusing_own_backward
from robust_plugin.masks.masked_layer import plain_class
from robust_plugin.threat.model import ThreatModel


def input_set(x: Tensor, threat: ThreatModel) -> Bounded:
    """Return the set of inputs that the threat model allows for each point, within [low, high].

    It is an ``Interval`` for the norm Linf and a ``Ball`` for L2.

    Args:
        x: clean inputs, shape [B, ...].
        threat: threat model with norm Linf or L2.

    Raises:
        ValueError: for inputs outside [low, high], or a norm other than Linf and L2.
    """
    threat.check_inputs(x)
    if threat.norm == "L1":
        raise ValueError("the threat model's norm is L1; interval bounds know Linf and L2.")
    lower = (x - threat.eps).clamp(threat.low, threat.high)
    box = Interval.between(lower, (x + threat.eps).clamp(threat.low, threat.high))
    if threat.norm == "Linf":
        return box
    return Ball(x, torch.full_like(x[:1], threat.eps), box)


class Propagation:
    """The set of values at every node of a network's trace, over all inputs of a threat model.

    Inside ``clean_pass``, BatchNorms in training mode use the statistics of the clean batch. In all
    other cases, BatchNorms use their running statistics.

    Args:
        model: network without wrappers such as DDP, or a single layer. Each Propagation traces it
            again with torch.fx, so its weights and code may change in between.
        x: inputs, shape [B, ...], within [low, high].
        threat: threat model with norm Linf or L2.

    Raises:
        ValueError: for inputs outside [low, high], a norm, layer or operation without a rule, a
            network that cannot be traced, or one that writes in place over a tensor it uses again.
    """

    def __init__(self, model: nn.Module, x: Tensor, threat: ThreatModel) -> None:
        if fx.Tracer().is_leaf_module(model, ""):
            model = nn.Sequential(model)  # else the trace would go inside the layer
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.values: dict[fx.Node, Any] = {}
        self._calls: Counter[nn.Module] = Counter()
        *self.nodes, end = traced(model)
        self.out: Any = end.args[0]
        inputs = [node for node in self.nodes if node.op == "placeholder" and not node.args]
        if len(inputs) != 1:
            raise ValueError(f"the model takes {[str(n) for n in inputs]}; legal: one input.")
        self.values[inputs[0]] = input_set(x, threat)
        for node in self.nodes:
            if node.op == "placeholder":
                self.values.setdefault(node, *node.args)  # an option at its default
            else:
                try:
                    self.values[node] = self._value(node)
                except (RuntimeError, IndexError) as error:
                    refuse_inputs(model, x, error)

    def output(self) -> Bounded:
        """Return the set of the network's logits, shape [B, classes]."""
        found = self.values.get(self.out) if isinstance(self.out, fx.Node) else None
        if not isinstance(found, Interval | Ball) or found.box().centre.dim() != 2:
            raise ValueError("the model does not return [batch, classes] logits alone.")
        return found

    def last_linear(self) -> tuple[nn.Linear | None, Bounded]:
        """Return the network's last layer, if it is linear, and the set of this layer's inputs.

        If the network does not end in a linear layer, return None and the set of the network's
        outputs.
        """
        found, layer = self.output(), self.layer(self.out)
        if layer is None or plain_class(layer) is not nn.Linear:
            return None, found
        return layer, self.values[self.out.args[0]]

    def relu_inputs(self) -> Iterator[tuple[Interval, Tensor | None]]:
        """Yield the interval of each ReLU's inputs, and the weight of the BatchNorm before it.

        The weight is None where the ReLU does not directly follow a BatchNorm with a weight.
        """
        for node in self.nodes:
            layer = self.layer(node)
            if node.target in RELUS or (layer is not None and plain_class(layer) is nn.ReLU):
                source: Any = node.args[0]
                before = self.layer(source)
                norm = before is not None and plain_class(before) in NORMS
                yield self.values[source].box(), before.weight if norm else None

    def layer(self, node: Any) -> Any:
        """Return the layer that a node of the trace calls, or None if it calls no layer."""
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return self.modules[str(node.target)] if called else None

    def _value(self, node: fx.Node) -> Any:
        """Return what a node of the trace computes: a set of values, or a constant.

        Constants are values that do not depend on the network's inputs.
        """
        if node.op == "get_attr":
            return reduce(getattr, str(node.target).split("."), self.model)
        args = fx.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, self.values.__getitem__)
        layer = self.layer(node)
        in_place = getattr(layer, "inplace", False) or works_in_place(node.target, args, kwargs)
        if in_place and self._read_again(node.all_input_nodes[0]):
            raise ValueError(
                f"{node.name!r} writes over a tensor that the network uses again; write it "
                "without in-place operations."
            )
        if layer is not None:
            if len(args) != 1 or kwargs or not isinstance(args[0], Interval | Ball):
                raise ValueError(f"layer {node.target!r} takes more than one input; bounds do not.")
            statistics = statistics_of(str(node.target), layer, self._calls[layer])
            self._calls[layer] += 1
            return through_layer(str(node.target), layer, args[0], statistics)
        sets = [isinstance(self.values[each], Interval | Ball) for each in node.all_input_nodes]
        if not any(sets):
            operation: Any = node.target
            if isinstance(operation, str):
                return getattr(args[0], operation)(*args[1:], **kwargs)
            return operation(*args, **kwargs)
        return through_call(node.name, node.target, args, kwargs)

    def _read_again(self, node: Any) -> bool:
        """Return whether the tensor that a node computes is read by more than one operation.

        A read of another tensor that shares its memory counts too.
        """
        layer = self.layer(node)
        if len(node.users) > 1:
            return True
        alias = node.target if layer is None else plain_class(layer)
        return alias in ALIASES and self._read_again(node.args[0])


def refuse_unseen(model: nn.Module) -> None:
    """Raise if a network computes something that a trace or a copy of its layers would miss.

    These are forward hooks, and a ``forward`` that is an attribute of the module itself instead of
    its class. Hooks of ``torch.nn.utils.prune`` are allowed: they only compute the layer's weight.

    Raises:
        ValueError: for a hook or such a ``forward``; the message names the module and the hook.
    """
    for name, module in model.named_modules():
        shown = f"layer {name!r}" if name else "the model"
        before = module._forward_pre_hooks.values()
        made = [hook for hook in before if not isinstance(hook, prune.BasePruningMethod)]
        for hook in (*made, *module._forward_hooks.values()):
            raise ValueError(
                f"{shown} has a forward hook, {getattr(hook, '__qualname__', hook)}, which bounds "
                "do not see; remove it, or write what it does into the network's forward."
            )
        if "forward" in vars(module):
            raise ValueError(
                f"{shown} has a forward of its own beside its class's, which bounds do not see; "
                "delete it (accelerate: unwrap_model(model, keep_fp32_wrapper=False)), or make it "
                "a class's."
            )


def traced(model: nn.Module) -> list[fx.Node]:
    """Trace a network by torch.fx, and return the nodes of the trace in the order they run.

    Raises:
        ValueError: for a network that cannot be traced. Where gradients are enabled, also for a
            network with a ``torch.autograd.Function`` or a backward hook: the trace computes the
            same values, but other gradients.
    """
    if torch.is_grad_enabled():
        for name, layer in model.named_modules():
            if layer._backward_hooks or layer._backward_pre_hooks:
                raise ValueError(
                    f"layer {name!r} has a backward hook, which the gradient of bounds would not "
                    "pass; remove it, or take another objective."
                )
    try:
        with refusing_own_backward() if torch.is_grad_enabled() else nullcontext():
            return list(fx.Tracer().trace(model).nodes)
    except OwnBackward as error:
        raise ValueError(
            f"{error}, so there is no training of {type(model).__name__} by bounds: take another "
            "objective, or write the function's forward pass with operations of torch. Proofs, "
            "under torch.no_grad(), need no gradients."
        ) from error
    except Exception as error:  # tracing fails in as many ways as there are networks
        raise ValueError(
            f"{type(model).__name__} cannot be traced by torch.fx ({error}), so there are no "
            "bounds of it; keep its forward free of branches on values."
        ) from error
