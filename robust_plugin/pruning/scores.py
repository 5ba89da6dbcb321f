"""Initial importance scores: one function a method, weight in, score out.

A score's size orders the weights of its group; its sign is the weight's, so that sign(s) w > 0
and a weight that helps gains importance (HYDRA, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

ScoreName = Literal[
    "scaled_magnitude", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"
]
Scores = ScoreName | Callable[[Tensor], Tensor] | Mapping[str, Tensor]


def scaled_magnitude(weight: Tensor) -> Tensor:
    """s0 = sqrt(6 / fan_in) w / max|w|, so that the first mask is the magnitude mask.

    HYDRA, equation 3; fan_in = in/groups * kh * kw, the number of weights an output reads.
    A tensor of zeros stays zero.
    """
    weight = weight.detach().float()
    fan_in = weight[0].numel()
    return math.sqrt(6 / fan_in) * weight / weight.abs().max().clamp(min=1e-30)


def random_scores(name: ScoreName, weight: Tensor) -> Tensor:
    """Draw scores from torch's kaiming or xavier initialisers (HYDRA's ablation, section 4.2)."""
    scores = torch.empty_like(weight, dtype=torch.float32)
    draw: Callable[[Tensor], Tensor] = getattr(nn.init, f"{name}_")
    return draw(scores)


def snip_scores(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> dict[str, Tensor]:
    """|g w| with g = dL/dw on one batch (SNIP, Lee et al. 2019), by parameter name.

    Hand the result to ``HydraPruner(model, ..., scores=...)``. Gradients and flags of the model
    are left alone; BatchNorm runs on its statistics.

    Args:
        model: a model without a pruner.
        x: inputs [B, ...].
        y: labels [B].
        loss: of logits and labels.
    """
    named = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
    flags = {module: module.training for module in model.modules()}
    frozen = [p for p in named.values() if not p.requires_grad]
    try:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            grads = torch.autograd.grad(loss(model(x), y), list(named.values()), allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in flags.items():
            module.training = training
    return {
        name: (parameter.detach() * grad).abs()
        for (name, parameter), grad in zip(named.items(), grads, strict=True)
        if grad is not None
    }


def initial_scores(scores: Scores, name: str, weight: Tensor) -> Tensor:
    """Return the first scores of one weight tensor.

    Args:
        scores: a method's name, a function of the weight, or tensors by parameter name.
        name: the parameter's dense name, e.g. ``"layer1.conv.weight"``.
        weight: the weight.

    Raises:
        ValueError: for an unknown name, a missing or wrongly shaped tensor, or NaN.
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
    else:
        given = scores(weight)
    if given.shape != weight.shape:
        raise ValueError(
            f"the scores of {name} have shape {tuple(given.shape)}; its weight has "
            f"{tuple(weight.shape)}."
        )
    if not bool(given.isfinite().all()):
        raise ValueError(f"the scores of {name} are not finite.")
    return given.detach().to(weight.device, torch.float32)
