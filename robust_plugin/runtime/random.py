"""Random numbers of a batch, a row a point: the same whoever computes which of its points.

Where a batch is split, over processes or into micro-batches, each part would draw noise of its own,
and the result would depend on the split. Inside ``drawing`` every part draws for the whole batch
from one generator and keeps its rows. Outside, all is drawn from the global generator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Some points of a batch.

    Attributes:
        rows: their places in the batch, in the order in which they are computed.
        of: points in the batch.
        generator: draws for the whole batch, on the device of the inputs; to be in one state
            wherever a part of the batch begins.
    """

    rows: Sequence[int]
    of: int
    generator: torch.Generator


_SHARE: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def drawing(share: Share) -> Iterator[None]:
    """Inside, what is drawn for ``len(share.rows)`` points are these rows of the batch's draw."""
    before = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(before)


def normal_like(x: Tensor, *, samples: int | None = None) -> Tensor:
    """Return N(0, 1) of the shape of ``x`` [B, ...], or [samples, B, ...]."""
    return _drawn(x, lambda whole, generator: whole.normal_(generator=generator), samples)


def uniform_like(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return numbers from [low, high) of the shape of ``x`` [B, ...]."""
    return _drawn(x, lambda whole, generator: whole.uniform_(low, high, generator=generator))


def happens(probability: float) -> bool:
    """Return True with a probability; all parts of a batch agree."""
    share = _SHARE.get()
    if share is None:
        return bool(torch.rand(()) < probability)
    generator = share.generator
    return bool(torch.rand((), generator=generator, device=generator.device) < probability)


def few_of(n: int, count: int) -> tuple[Tensor, float]:
    """Choose ``count`` points of a batch at random, without replacement.

    Args:
        n: points here.
        count: how many of the whole batch.

    Returns:
        tuple: places among the points here of those that were chosen, and what to divide the sum of
        their losses by, so that the mean over all parts, each weighted by its points, is the mean
        over the chosen ones.
    """
    share = _SHARE.get()
    if share is None or len(share.rows) != n:
        few = torch.randperm(n)[:count]
        return few, float(len(few))
    generator = share.generator
    order = torch.randperm(share.of, generator=generator, device=generator.device)
    chosen = order[:count].tolist()
    here = {row: place for place, row in enumerate(share.rows)}
    few = torch.tensor([here[row] for row in chosen if row in here], dtype=torch.long)
    return few, len(chosen) * n / share.of


def _drawn(
    x: Tensor,
    fill: Callable[[Tensor, torch.Generator | None], Tensor],
    samples: int | None = None,
) -> Tensor:
    leading = [] if samples is None else [samples]
    share = _SHARE.get()
    # Other points than the share's, as where an attack restarts on those that stand: no rows of it.
    if share is None or len(share.rows) != len(x) or share.generator.device.type != x.device.type:
        return fill(torch.empty(*leading, *x.shape, dtype=x.dtype, device=x.device), None)
    size = [*leading, share.of, *x.shape[1:]]
    whole = fill(torch.empty(size, dtype=x.dtype, device=x.device), share.generator)
    if len(share.rows) == share.of:
        return whole
    rows = torch.tensor(share.rows, device=x.device)
    return whole.index_select(len(leading), rows)


@contextmanager
def forked(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of a device inside; then they are as before."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # Not torch.manual_seed, which reaches for other GPUs too, and nobody would restore those.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def seed_of(*parts: object) -> int:
    """Return a seed that is a function of its parts alone; near parts give unrelated seeds."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
