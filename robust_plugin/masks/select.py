"""Masks as functions of scores: exact top-k, n:m patterns, and the straight-through gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def kept_count(n: int, density: float) -> int:
    """Return how many of ``n`` weights a layer keeps at density k: max(1, n - int((1 - k) n)).

    HYDRA keeps as many (section 3 of the paper; its code computes with Python floats), but here it
    is at least one, so that a small layer does not lose all its weights.

    Args:
        n: number of weights (or channels) of the layer.
        density: k, share of them to keep.
    """
    return max(1, n - int((1 - density) * n))


def topk_mask(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the ``count`` largest ``|scores|``; ties go to the lower index.

    Args:
        scores: floating-point scores of any shape.
        count: number of scores to select, 0 <= count <= scores.numel().

    Returns:
        Tensor: bool mask of the shape of ``scores`` with exactly ``count`` ones.

    Raises:
        ValueError: if ``count`` is out of this range or a score is NaN.
    """
    n = scores.numel()
    if not 0 <= count <= n:
        raise ValueError(f"count is {count}; a tensor of {n} scores keeps 0 to {n}.")
    magnitudes = scores.detach().abs().flatten()
    if count in (0, n):
        _refuse_nan(magnitudes)
        return torch.full_like(scores, count == n, dtype=torch.bool)
    _refuse_nan(magnitudes.amax())  # The maximum of a tensor that holds NaN is NaN.
    mask = (_by_sorting if magnitudes.is_cuda else _by_threshold)(magnitudes, count)
    # torch.empty_like keeps the strides of a channels_last weight.
    return torch.empty_like(scores, dtype=torch.bool).copy_(mask.view(scores.shape))


def _by_threshold(magnitudes: Tensor, count: int) -> Tensor:
    """Return the bool mask of the ``count`` largest magnitudes; ties go to the lower index.

    It compares all magnitudes with the smallest one that is kept.

    Args:
        magnitudes: absolute scores, shape [n].
        count: number of ones in the mask, 0 < count < n.
    """
    threshold = magnitudes.kthvalue(len(magnitudes) - count + 1).values
    mask = magnitudes > threshold
    missing = count - int(mask.sum())
    mask[(magnitudes == threshold).nonzero().flatten()[:missing]] = True
    return mask


def _by_sorting(magnitudes: Tensor, count: int) -> Tensor:
    """Return the same mask as ``_by_threshold`` above by sorting, which is faster on a GPU."""
    # On a GPU a single block of threads computes kthvalue, and every operation that counts or lists
    # entries makes the host wait.
    order = magnitudes.sort(descending=True, stable=True).indices
    return torch.zeros_like(magnitudes, dtype=torch.bool).scatter_(0, order[:count], True)


def nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Return the mask of the ``n`` largest ``|scores|`` of every ``m`` consecutive ones.

    Consecutive is along dimension 1, the input features of a linear layer or the input channels of
    a convolution, because semi-structured kernels multiply along it. Ties go to the lower index.

    Returns:
        Tensor: bool mask of the shape of ``scores``.

    Raises:
        ValueError: if m does not divide the length of dimension 1, or a score is NaN.
    """
    if scores.dim() < 2 or scores.shape[1] % m:
        raise ValueError(f"{n}:{m} needs dimension 1 divisible by {m}; got {tuple(scores.shape)}.")
    _refuse_nan(scores)
    last = scores.detach().abs().movedim(1, -1)
    rows = last.reshape(*last.shape[:-1], -1, m)
    order = rows.argsort(dim=-1, descending=True, stable=True)[..., :n]
    mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(-1, order, True)
    return torch.empty_like(scores, dtype=torch.bool).copy_(mask.flatten(-2).movedim(-1, 1))


def most_kept(weight: Tensor, m: int) -> int:
    """Return the largest number of non-zeros in any block of ``m`` consecutive weights.

    The blocks divide dimension 1 and do not overlap. A weight is n:m
    sparse exactly if the returned number is at most n.

    Raises:
        ValueError: if m does not divide the length of dimension 1.
    """
    if weight.dim() < 2 or weight.shape[1] % m:
        raise ValueError(f"n:{m} needs dimension 1 divisible by {m}; got {tuple(weight.shape)}.")
    rows = (weight.detach() != 0).movedim(1, -1).reshape(-1, m)
    return int(rows.sum(-1).amax())


class Pattern(NamedTuple):
    """Pattern of a mask that keeps n of every m consecutive weights.

    Attributes:
        n: number of kept weights of every m; None if each layer has its own n.
        m: number of consecutive weights of which n are kept.
    """

    n: int | None
    m: int

    def __str__(self) -> str:
        return f"{'n' if self.n is None else self.n}:{self.m}"

    def kept_of_m(self, kept: int, size: int) -> int:
        """Return n if a layer of ``size`` weights keeps ``kept`` of them in this pattern.

        Raises:
            ValueError: if no whole n keeps ``kept`` weights, or it is not the pattern's own n.
        """
        n, rest = divmod(kept * self.m, size)
        if rest or not 0 < n <= self.m or self.n not in (None, n):
            raise ValueError(
                f"{kept} of {size} weights kept is not the pattern {self}; is the state of a "
                "pruner with another pattern?"
            )
        return n


def parse_pattern(pattern: str) -> Pattern:
    """Return the pattern that a string describes.

    Args:
        pattern: ``"2:4"`` to keep two of every four consecutive weights; ``"n:4"``, with the letter
            n, if each layer keeps its own n of every four.

    Raises:
        ValueError: unless n and m are whole numbers with 0 < n <= m, or n is the letter.

    >>> parse_pattern("2:4")
    Pattern(n=2, m=4)
    """
    parts = pattern.split(":") if isinstance(pattern, str) else []
    if len(parts) == 2 and parts[1].isdecimal() and int(parts[1]) > 0:
        m = int(parts[1])
        if parts[0] == "n":
            return Pattern(None, m)
        if parts[0].isdecimal() and 0 < int(parts[0]) <= m:
            return Pattern(int(parts[0]), m)
    raise ValueError(
        f'pattern is {pattern!r}; legal: "n:m" with 0 < n <= m, such as "2:4", or "n:4" with the '
        "letter n, where each layer has a number of its own."
    )


def _refuse_nan(scores: Tensor) -> None:
    """Raise a ValueError if a score is NaN."""
    if bool(scores.isnan().any()):
        raise ValueError(
            "the scores hold NaN; lower the learning rate of the prune phase, or look for NaN in "
            "the loss."
        )


class StraightThrough(torch.autograd.Function):
    """Function that returns a mask m and passes its gradient on to the scores s and the density k.

    In the backward pass dL/ds_i = sign(s_i) dL/dm_i for every score, whether m_i is 1 or 0 (HYDRA,
    section 3.1), and dL/dk = sum_i dL/dm_i (HARP, section 3.2).
    """

    @staticmethod
    def forward(mask: Tensor, scores: Tensor, density: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``mask``, converted to ``dtype``; scores and density only receive gradients."""
        return mask.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the scores, whose signs the backward pass needs."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        """Return the gradients of the four inputs of ``forward``; None for mask and dtype."""
        (scores,) = ctx.saved_tensors
        to_scores = grad.float() * scores.sign() if ctx.needs_input_grad[1] else None
        to_density = grad.float().sum() if ctx.needs_input_grad[2] else None
        return None, to_scores, to_density, None
