"""Random numbers that do not depend on how a batch is split, and seeds.

A batch may be split over processes or into micro-batches. If each part drew its own noise, the
result would depend on the split. Within the context ``drawing``, every part draws the numbers of
the whole batch from generators in the same state, and keeps those of its own points. Otherwise,
numbers come from torch's global generator.
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
    """One part of a batch.

    Attributes:
        rows: index in the whole batch of each point of this part, in the order of its inputs.
        points: number of points in the whole batch.
        generator: generator that draws the numbers of the whole batch, on the device of the inputs.
            It must be in the same state at the start of every part of the batch.
    """

    rows: Sequence[int]
    points: int
    generator: torch.Generator


_SHARE: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def drawing(share: Share) -> Iterator[None]:
    """Return a context manager in which this module draws the numbers of one part of a batch.

    Within the context, the functions of this module draw the numbers of the whole batch from
    ``share.generator``, and return those of this part's points. Draws for a number of points other
    than ``len(share.rows)`` come from torch's global generator.

    Args:
        share: the part of the batch that is computed within the context.
    """
    before = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(before)


def normal_like(x: Tensor, *, samples: int | None = None) -> Tensor:
    """Return normal random numbers N(0, 1), with the dtype and the device of ``x``.

    Args:
        x: tensor whose first axis is the point, shape [B, ...].
        samples: number of samples per point, for a result of shape [samples, B, ...]; None for one
            sample and the shape of ``x``.
    """
    return _drawn(x, lambda whole, generator: whole.normal_(generator=generator), samples)


def uniform_like(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return uniform random numbers from [low, high), with shape, dtype and device of ``x``.

    Args:
        x: tensor whose first axis is the point, shape [B, ...].
        low: start of the range, included.
        high: end of the range, not included.
    """
    return _drawn(x, lambda whole, generator: whole.uniform_(low, high, generator=generator))


def happens(probability: float) -> bool:
    """Return True with the given probability; within ``drawing``, all parts of a batch agree."""
    share = _SHARE.get()
    if share is None:
        return bool(torch.rand(()) < probability)
    generator = share.generator
    return bool(torch.rand((), generator=generator, device=generator.device) < probability)


def few_of(n: int, count: int) -> tuple[Tensor, float]:
    """Choose ``count`` points of a batch at random, without replacement.

    Args:
        n: number of points in this part of the batch.
        count: number of points to choose from the whole batch.

    Returns:
        tuple: the indices into this part of those chosen points that belong to it, and the divisor
        for the sum of their losses. With it, the mean over all parts, each weighted by its number
        of points, is the mean over all chosen points.
    """
    share = _SHARE.get()
    if share is None or len(share.rows) != n:
        few = torch.randperm(n)[:count]
        return few, float(len(few))
    generator = share.generator
    order = torch.randperm(share.points, generator=generator, device=generator.device)
    chosen = order[:count].tolist()
    here = {row: place for place, row in enumerate(share.rows)}
    few = torch.tensor([here[row] for row in chosen if row in here], dtype=torch.long)
    return few, len(chosen) * n / share.points


def _drawn(
    x: Tensor,
    fill: Callable[[Tensor, torch.Generator | None], Tensor],
    samples: int | None = None,
) -> Tensor:
    """Return random numbers for the points of ``x``; see ``drawing`` for parts of a batch.

    Args:
        x: tensor whose first axis is the point, shape [B, ...].
        fill: function that fills a tensor with numbers of a generator (None: torch's global one),
            and returns it.
        samples: number of samples per point, as for ``normal_like``.
    """
    leading = [] if samples is None else [samples]
    share = _SHARE.get()
    # Other points than those of the part, as when an attack restarts on the points not fooled yet,
    # have no rows in the draw of the batch.
    if share is None or len(share.rows) != len(x) or share.generator.device.type != x.device.type:
        return fill(torch.empty(*leading, *x.shape, dtype=x.dtype, device=x.device), None)
    size = [*leading, share.points, *x.shape[1:]]
    whole = fill(torch.empty(size, dtype=x.dtype, device=x.device), share.generator)
    if len(share.rows) == share.points:
        return whole
    rows = torch.tensor(share.rows, device=x.device)
    return whole.index_select(len(leading), rows)


@contextmanager
def forked(seed: int, device: torch.device) -> Iterator[None]:
    """Return a context manager in which torch's global generators begin at a seed.

    At the end, the generators of the CPU and of ``device`` are in the state that they had before.

    Args:
        seed: seed of the generators.
        device: device whose generator is seeded beside that of the CPU.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # Not torch.manual_seed: it also seeds other GPUs, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def seed_of(*parts: object) -> int:
    """Return a seed, 0 <= seed < 2**63, that depends on the given parts and on nothing else.

    Parts that differ by little give unrelated seeds.

    Args:
        parts: values whose ``str`` identifies them, such as a seed, a name and an epoch.
    """
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
