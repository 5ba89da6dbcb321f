"""Checks of a network before attacks, for defects that make robust accuracy look too high.

``findings`` returns sentences about such defects, which go into the report. ``refuse_random``
raises for a network that is random in evaluation mode.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from robust_plugin.attacks.losses import margin_loss, soft_margin
from robust_plugin.masks.attach import held_weights
from robust_plugin.runtime.contexts import exact
from robust_plugin.runtime.tolerances import REPEATED_LOGITS
from robust_plugin.threat.model import per_point

# Number of points that are checked, and the length of the step along the gradient in input units.
_POINTS = 32
_STEP = 1e-3
# Legal range of the measured slope along the gradient divided by the gradient's length. It is 1
# for a smooth function; rounding and kinks need room.
_AGREE = (0.5, 2.0)
# Cross-entropy's gradient has underflowed if its length over that of ``soft_margin``'s gradient is
# below the first number (logits 28 apart). It is a finding at more than the second share of points.
_UNDERFLOWN, _OFTEN = 1e-12, 0.25


def findings(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """Return a sentence for each defect of a network that would mislead attacks by gradients.

    The defects are outputs that are probabilities; logits that depend on the other points of the
    batch, or that have no graph to the inputs; and input gradients that are zero, not finite,
    underflow in cross-entropy, or are not the gradients of the outputs (a detached layer, a custom
    backward pass). Half precision counts too. The first 32 points are checked. The list is empty if
    there are no defects.

    Args:
        model: network in evaluation mode.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
    """
    x, y = x[:_POINTS].detach().clone(), y[:_POINTS]
    with torch.enable_grad():
        logits = model(x.requires_grad_())
        gradient = _gradient(margin_loss(logits, y), x)
    found = [*_probabilities(logits.detach()), *_by_batch(model, x.detach())]
    if gradient is None:
        return [
            *found,
            "the outputs do not depend on the inputs by autograd (a detached layer?); attacks by "
            "gradients see nothing",
        ]
    lost = ~gradient.flatten(1).isfinite().all(1)
    if bool(lost.any()):
        found.append(
            f"the gradient is NaN or infinite at {int(lost.sum())} of {len(x)} points (the square "
            "root, norm or logarithm of 0?); attacks by gradients do not see what it hides"
        )
    size = gradient.nan_to_num(0.0, 0.0, 0.0).flatten(1).norm(dim=1)
    zero = int(((size == 0) & ~lost).sum())
    if zero:
        found.append(
            f"the gradient is exactly zero at {zero} of {len(x)} points; attacks by gradients see "
            "nothing there"
        )
    rows = ((size > 0) & ~lost).nonzero().flatten()
    if len(rows):
        found += _underflow(model, x.detach()[rows], y[rows])
    if x.dtype not in (torch.float32, torch.float64):
        found.append(
            f"the network computes in {x.dtype}, whose rounding hides small steps from attacks; "
            "evaluate model.float()"
        )
    elif len(rows):
        found += _disagreement(model, x.detach()[rows], y[rows], gradient[rows], size[rows])
    return found


def _gradient(losses: Tensor, x: Tensor) -> Tensor | None:
    """Return the gradient of the summed losses by x, or None if autograd does not connect them."""
    if not losses.requires_grad:
        return None
    found: Tensor | None
    (found,) = torch.autograd.grad(losses.sum(), x, allow_unused=True, retain_graph=True)
    return found


def _probabilities(logits: Tensor) -> list[str]:
    """Return one sentence if the outputs are probabilities, not logits; else an empty list."""
    if not bool(((logits >= 0) & (logits <= 1)).all()):
        return []
    if torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        return [
            "the outputs look like probabilities; return logits, or gradients vanish and the "
            "robust accuracy is too high"
        ]
    return [
        "the outputs all lie in [0, 1], like those of a sigmoid; if one makes them, return logits, "
        "or gradients vanish and the robust accuracy is too high"
    ]


def _by_batch(model: nn.Module, x: Tensor) -> list[str]:
    """Return one sentence if logits depend on the other points of the batch; else an empty list.

    Compared are the logits of the first half of the points in two batches of equal size, whose
    other halves differ.
    """
    half = len(x) // 2
    if half == 0:
        return []
    others = torch.cat([x[:half], x])[: len(x)]
    with torch.no_grad(), exact(x):
        found, wanted = model(others)[:half], model(x)[:half]
    if _same(found, wanted):
        return []
    return [
        "the logits of a point depend on the other points of its batch (BatchNorm without running "
        "statistics, or adaptation at test time?); every figure is one of this batch size and order"
    ]


def _underflow(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """Return one sentence if cross-entropy's gradient underflows; else an empty list.

    Its length is compared with that of the gradient of ``soft_margin``, a loss whose gradient has
    the same direction and does not underflow.
    """
    with torch.enable_grad():
        logits = model(x.requires_grad_())
        losses = (F.cross_entropy(logits, y, reduction="none"), soft_margin(logits, y))
        ours, theirs = (_gradient(loss, x) for loss in losses)
    if ours is None or theirs is None:
        return []
    small, size = (
        g.nan_to_num(0.0, 0.0, 0.0).flatten(1).double().norm(dim=1) for g in (ours, theirs)
    )
    wrong = int((small < _UNDERFLOWN * size).sum())
    if wrong <= _OFTEN * len(x):
        return []
    apart = float((logits.amax(1) - logits.amin(1)).max())
    return [
        f"cross-entropy's gradient underflows at {wrong} of {len(x)} points, since logits lie up "
        f"to {apart:.3g} apart; attacks that climb it as it is are misled (pgd of this package "
        "and losses of margins are not)"
    ]


def _disagreement(
    model: nn.Module, x: Tensor, y: Tensor, gradient: Tensor, size: Tensor
) -> list[str]:
    """Return one sentence if the gradients are not those of the outputs; else an empty list.

    For at least half of the points, the slope of the margin loss along its gradient must equal the
    gradient's length up to a factor of two. The slope is measured by central differences.

    Args:
        model: network in evaluation mode.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
        gradient: gradient of the margin loss at each point, shape [B, ...].
        size: L2 length of each gradient, shape [B].
    """
    step = _STEP * gradient / per_point(size, x)
    with torch.no_grad(), exact(x):  # TF32 rounds such a step away
        ahead, behind = (margin_loss(model(x + way * step), y) for way in (1, -1))
    ratio = (ahead - behind) / (2 * _STEP) / size
    wrong = int(((ratio < _AGREE[0]) | (ratio > _AGREE[1])).sum())
    if 2 * wrong <= len(x):
        return []
    if (dtype := _narrowest(model, x)) is not None:
        return [
            f"the network computes in {dtype} on the way (autocast in its forward?), whose "
            "rounding hides small steps from attacks; evaluate it in float32"
        ]
    return [
        f"the gradient is not that of the outputs at {wrong} of {len(x)} points (a detached "
        "branch, or a backward pass of its own?); attacks by gradients are misled"
    ]


class _Dtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the context, collect in ``seen`` the dtypes of the results of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.seen.add(out.dtype)
        return out


def _narrowest(model: nn.Module, x: Tensor) -> torch.dtype | None:
    """Return float16 or bfloat16 if a result within the forward pass has this dtype, else None."""
    with torch.no_grad(), _Dtypes() as dtypes:
        model(x)
    halves = (torch.float16, torch.bfloat16)
    return next((dtype for dtype in halves if dtype in dtypes.seen), None)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two computations of the same logits agree up to rounding."""
    share = max(REPEATED_LOGITS, 4 * torch.finfo(other.dtype).eps)
    return torch.allclose(one, other, rtol=share, atol=share * float(other.abs().max()))


def is_random(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Return whether a second forward pass gives logits that differ by more than rounding.

    Args:
        model: network in evaluation mode.
        x: inputs, shape [B, ...].
        logits: the logits that the first forward pass gave for x.
    """
    with held_weights(model):
        return not _same(model(x), logits)


def refuse_random(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Raise if a second forward pass gives logits that differ by more than rounding.

    Args:
        model: network in evaluation mode.
        x: inputs, shape [B, ...].
        logits: the logits that the first forward pass gave for x.

    Raises:
        ValueError: for such a network; the message says what may cause it.
    """
    if is_random(model, x, logits):
        raise ValueError(
            "the model gives different logits for the same input in evaluation mode; attacks and "
            "figures would measure noise. Look for dropout or noise that ignores model.eval(), or "
            "for a state that a forward pass changes; for a network that is random on purpose "
            'there is AutoAttack(threat, version="rand").'
        )
