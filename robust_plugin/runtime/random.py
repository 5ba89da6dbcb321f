"""Random numbers that do not depend on how a batch is split, and seeds.

A batch may be split over processes or into micro-batches. If each part drew its own noise, the
result would depend on the split. Inside ``drawing``, every part draws the numbers of the whole
batch from one generator, and keeps the rows of its own points. Outside, numbers come from torch's
global generator.
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
        rows: places in the batch of the points of this part, in the order of its inputs.
        points: number of points in the whole batch.
        generator: generator of the whole batch's numbers, on the device of the inputs. It must be
            in the same state at the start of every part of the batch.
    """

    rows: Sequence[int]
    points: int
    generator: torch.Generator


_SHARE: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def drawing(share: Share) -> Iterator[None]:
    """Draw numbers for the whole batch inside, and return the rows of this part.

    This concerns draws for ``len(share.rows)`` points. Other draws come from the global generator.

    Args:
        share: the part of the batch that is computed inside.
    """
    before = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(before)


def normal_like(x: Tensor, *, samples: int | None = None) -> Tensor:
    """Return normal random numbers N(0, 1), with the dtype and the device of ``x``.

    Args:
        x: tensor with one row per point, shape [B, ...].
        samples: number of samples per point, for a result of shape [samples, B, ...]; None for one
            sample and the shape of ``x``.
    """
    return _drawn(x, lambda whole, generator: whole.normal_(generator=generator), samples)


def uniform_like(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return uniform random numbers from [low, high), with shape, dtype and device of ``x``.

    Args:
        x: tensor with one row per point, shape [B, ...].
        low: smallest number.
        high: end of the range, not included.
    """
    return _drawn(x, lambda whole, generator: whole.uniform_(low, high, generator=generator))


def happens(probability: float) -> bool:
    """Return True with the given probability; all parts of a batch get the same answer."""
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
        tuple: the indices into this part of the chosen points that it has, and the number to divide
        the sum of their losses by. With this number, the mean over all parts, each weighted by its
        points, is the mean over all chosen points.
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
    """Return a tensor that ``fill`` has filled, of the whole batch or of this part's rows."""
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
    """Seed torch's global generators of the CPU and of one device inside, and restore them after.

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
    """Return a seed, 0 <= seed < 2**63, that depends on the parts alone.

    Parts that differ by little give unrelated seeds.

    Args:
        parts: values whose ``str`` identifies them, such as a seed, a name and an epoch.
    """
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
