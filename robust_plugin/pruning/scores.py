"""Initial importance scores of weights and channels, by several methods.

The magnitude ``|s|`` of a score ranks the weights within a layer. For ``scaled_magnitude`` its sign
is that of the weight, so that sign(s) w > 0 and a weight that lowers the loss gains importance
(HYDRA, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.contexts import evaluating
from robust_plugin.runtime.values import check_call

ScoreName = Literal[
    "scaled_magnitude", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"
]
Scores = ScoreName | Callable[[Tensor], Tensor] | Mapping[str, Tensor]


@explain_wrong_calls
def scaled_magnitude(weight: Tensor) -> Tensor:
    """Return s0 = sqrt(6 / fan_in) w / max ``|w|``, so that the first mask is the magnitude mask.

    HYDRA, equation 3; fan_in = in/groups * kh * kw is the number of weights per output channel. A
    weight of zeros alone gives scores of zero.
    """
    weight = weight.detach().float()
    fan_in = weight[0].numel()
    return math.sqrt(6 / fan_in) * weight / weight.abs().max().clamp(min=1e-30)


def random_scores(name: ScoreName, weight: Tensor) -> Tensor:
    """Return random scores of the shape of a weight, from one of torch's initialisers.

    HYDRA compares with these in its ablation, section 4.2.

    Args:
        name: ``"kaiming_uniform"``, ``"kaiming_normal"``, ``"xavier_uniform"`` or
            ``"xavier_normal"``.
        weight: the weight; only its shape and device matter.
    """
    scores = torch.empty_like(weight, dtype=torch.float32)
    draw: Callable[[Tensor], Tensor] = getattr(nn.init, f"{name}_")
    return draw(scores)


@explain_wrong_calls
def snip_scores(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> dict[str, Tensor]:
    """Return the scores ``|g w|`` of all weights, g = dL/dw on one batch (SNIP, Lee et al. 2019).

    Pass the result to ``HydraPruner(model, ..., scores=...)``. The model does not change;
    BatchNorm uses its running statistics.

    Args:
        model: a model without a pruner.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
        loss: function of logits and labels that returns a scalar.

    Returns:
        dict: scores by parameter name, for parameters of two or more dimensions that the loss
        depends on.

    Raises:
        TypeError: if the model is no nn.Module, or inputs or labels are no tensors.
        ValueError: if the loss of this batch cannot be computed.
    """
    check_call(model, x, y)
    named = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
    frozen = [p for p in named.values() if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            try:
                value = loss(model(x), y)
            except (RuntimeError, IndexError, ValueError) as error:
                raise ValueError(
                    f"the loss of inputs of shape {tuple(x.shape)}, {x.dtype}, and labels of shape "
                    f"{tuple(y.shape)}, {y.dtype}, cannot be computed ({error}); give a batch as "
                    "in training, with integer labels below the number of classes."
                ) from error
            grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return {
        name: (parameter.detach() * grad).abs()
        for (name, parameter), grad in zip(named.items(), grads, strict=True)
        if grad is not None
    }


def initial_scores(scores: Scores, name: str, weight: Tensor) -> Tensor:
    """Return the initial scores of one weight tensor: float32, same shape, on the same device.

    Args:
        scores: the name of a method, a function of the weight, or tensors by parameter name.
        name: the name of the parameter in the dense network, e.g. ``"layer1.conv.weight"``.
        weight: the weight tensor, or the magnitudes of a group of channels.

    Raises:
        TypeError: if ``scores`` is of another kind, or the scores of a weight are no tensor.
        ValueError: if the method is unknown, ``scores`` has no tensor for ``name``, or the scores
            have another shape than the weight or are not finite.
    """
    if isinstance(scores, str):
        if scores not in get_args(ScoreName):
            raise ValueError(
                f"scores is {scores!r}; legal: {', '.join(get_args(ScoreName))}, a function of "
                "the weight, or a dict of tensors by parameter name."
            )
        given = (
            scaled_magnitude(weight)
            if scores == "scaled_magnitude"
            else random_scores(scores, weight)
        )
    elif isinstance(scores, Mapping):
        if name not in scores:
            raise ValueError(f"scores has no entry for {name!r}; it has {sorted(scores)[:5]}...")
        given = scores[name]
    elif callable(scores) and not isinstance(scores, Tensor | nn.Module):
        given = scores(weight)
    else:
        raise TypeError(
            f"scores is a {type(scores).__name__}; legal: {', '.join(get_args(ScoreName))}, a "
            "function of the weight, or a dict of tensors by parameter name."
        )
    if not isinstance(given, Tensor):
        raise TypeError(f"the scores of {name} are a {type(given).__name__}; give a tensor.")
    if given.shape != weight.shape:
        raise ValueError(
            f"the scores of {name} have shape {tuple(given.shape)}; its weight has "
            f"{tuple(weight.shape)}."
        )
    if not bool(given.isfinite().all()):
        raise ValueError(f"the scores of {name} are not finite.")
    return given.detach().to(weight.device, torch.float32)
