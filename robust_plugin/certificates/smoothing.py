"""Randomized smoothing (Cohen et al. 2019): certified L2 radii of any classifier.

The smoothed classifier answers what f answers most often under Gaussian noise, g(x) = argmax_c
P(f(x + sigma N) = c). Statistics are scipy's, imported when first needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import attacked
from robust_plugin.attacks.logits import check_logits, check_pairs, logits_of
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.runtime.journal import Fingerprint, Journal
from robust_plugin.stats import wilson_interval
from robust_plugin.threat.units import check_box, check_sigma, check_units

# What predict and certify answer where the votes decide nothing.
ABSTAIN = -1
# Noise is drawn in blocks of so many samples, whatever the batch size.
_BLOCK = 100
# Points in one file of the journal.
_UNIT = 50


@dataclass(frozen=True)
class Certificates:
    """What was certified: the smoothed classifier's answers and their radii.

    Attributes:
        predictions: shape [n], ``ABSTAIN`` where the votes decide nothing.
        radii: shape [n], L2, in input units; no perturbation of smaller norm changes the answer. 0
            where it abstains.
        labels: shape [n].
    """

    predictions: Tensor
    radii: Tensor
    labels: Tensor

    @property
    def acr(self) -> float:
        """The average certified radius: the mean of the radii, 0 where wrong (Zhai et al. 2020)."""
        return float((self.radii * self._right()).mean())

    def certified(self, radius: float) -> Tensor:
        """Return which points are right with at least this radius, bool of shape [n]."""
        return self._right() & (self.radii >= radius)

    def accuracy(self, radius: float) -> float:
        """Return the certified accuracy at a radius, in [0, 1]."""
        return float(self.certified(radius).float().mean())

    def table(self, radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)) -> str:
        """Return certified accuracy against radius, in per cent with Wilson 95 % intervals."""
        n, lines = len(self.labels), ["radius  certified"]
        for radius in radii:
            count = int(self.certified(radius).sum())
            low, high = (100 * end for end in wilson_interval(count, n))
            lines.append(f"{radius:6.3f}  {100 * count / n:5.1f} [{low:.1f}, {high:.1f}]  n={n}")
        return "\n".join([*lines, f"average certified radius {self.acr:.4f}"])

    def _right(self) -> Tensor:
        return self.predictions == self.labels


@dataclass(frozen=True)
class Smoothed:
    """Monte Carlo estimates of the smoothed classifier, seeded by point.

    A point's noise is a function of the seed, the point's values, and the device that draws: not of
    its place, of the points beside it, of the batch size, nor of how often a run was interrupted.
    Equal points share their noise, and so their answers. Each certificate holds with probability
    1 - alpha over the seed by itself, as the theorem says of one point; no two need be independent.

    Attributes:
        sigma: standard deviation of the noise, in input units.
        n0: votes that choose the class which is certified.
        n: further votes that certify it.
        alpha: probability that a certificate is wrong.
        batch_size: noisy inputs in one forward pass, over several points.
        seed: of the noise.
        low: smallest legal input value.
        high: largest legal input value; sigma and radii are in this unit.

    Raises:
        ValueError: naming the value and what is legal.

    >>> model = nn.Linear(1, 2)  # class 1 where x > 0.5
    >>> _ = model.load_state_dict(
    ...     {"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.tensor([0.5, -0.5])}
    ... )
    >>> x, y = torch.tensor([[0.5], [1.0]]), torch.tensor([1, 1])
    >>> found = Smoothed(sigma=0.25, n=1000).certify(model, x, y)
    >>> found.predictions.tolist()  # -1: the votes decide nothing on the boundary
    [-1, 1]
    >>> 0.4 < float(found.radii[1]) < 0.5  # the boundary is 0.5 away
    True
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    batch_size: int = 1000
    seed: int = 0
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        check_box(self.low, self.high)
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; legal: between 0 and 1.")
        if min(self.n0, self.n, self.batch_size) < 1:
            raise ValueError(
                f"n0 is {self.n0}, n {self.n} and batch_size {self.batch_size}; legal: at least 1."
            )

    def certify(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        journal: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Certificates:
        """Return answers with L2 radii that hold with probability 1 - alpha each.

        Of n0 noisy votes the winner is chosen; of n fresh ones, k for it, p is the one-sided
        Clopper-Pearson lower bound, and the radius sigma Phi^-1(p) if p > 1/2 (Cohen et al. 2019,
        CERTIFY).

        Args:
            model: the base classifier f, run in evaluation mode and left as it was.
            x: shape [n, ...], within [low, high].
            y: shape [n].
            journal: a folder from which an interrupted run goes on.
            progress: called with the points done, and all of them.

        Raises:
            ValueError: for inputs outside [low, high], which are in another unit than sigma, or
                that the model cannot take, labels out of range, logits that are not finite, or the
                journal of something else.
            ImportError: without scipy.
        """
        from scipy.stats import beta, norm

        model = unwrapped(model)

        def vote(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            chosen = self._votes(model, x, y, "choose", self.n0).argmax(1)
            votes = self._votes(model, x, y, "certify", self.n)
            return {"chosen": chosen, "count": votes.gather(1, chosen[:, None])[:, 0]}

        found = self._by_units("certify", model, x, y, vote, journal, progress)
        chosen, count = found["chosen"], found["count"]
        # The formula has no value at k = 0, where the bound is 0.
        bounds = [beta.ppf(self.alpha, k, self.n - k + 1) if k else 0.0 for k in count.tolist()]
        lower = torch.tensor(bounds, dtype=torch.float64)
        radii = self.sigma * torch.tensor(norm.ppf(bounds), dtype=torch.float64)
        decided = lower > 0.5
        return Certificates(
            torch.where(decided, chosen, ABSTAIN), torch.where(decided, radii, 0.0), y.cpu()
        )

    def predict(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        journal: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return the smoothed classifier's answers, shape [n]; wrong with probability alpha.

        ``ABSTAIN`` where a two-sided binomial test does not tell the two most frequent of n answers
        apart (Cohen et al. 2019, PREDICT).

        Args:
            model: as in ``certify``.
            x: shape [n, ...], within [low, high].
            journal: a folder from which an interrupted run goes on.
            progress: called with the points done, and all of them.

        Raises:
            ValueError: for inputs outside [low, high] or that the model cannot take, logits that
                are not finite, or the journal of something else.
            ImportError: without scipy.
        """
        from scipy.stats import binomtest

        check_units(x, self.low, self.high, "Smoothed")
        model, none = unwrapped(model), torch.zeros(len(x), dtype=torch.long, device=x.device)

        def vote(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            votes = self._votes(model, x, y, "predict", self.n)
            top = votes.topk(min(2, votes.shape[1]), dim=1)
            return {"votes": top.values, "classes": top.indices}

        found = self._by_units("predict", model, x, none, vote, journal, progress)
        votes = found["votes"].tolist()
        sure = [binomtest(each[0], sum(each), 0.5).pvalue <= self.alpha for each in votes]
        return torch.where(torch.tensor(sure), found["classes"][:, 0], ABSTAIN)

    def _by_units(
        self,
        purpose: str,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        vote: Callable[[Tensor, Tensor], dict[str, Tensor]],
        journal: str | Path | None,
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, Tensor]:
        """What ``vote(x, y)`` finds of all points, some at a time, by a journal."""
        check_units(x, self.low, self.high, "Smoothed")
        check_pairs(x, y)
        opened = None
        if journal is not None:
            opened = Journal(journal, {"purpose": purpose, **self._fingerprint(model, x, y)})
            with attacked(model), torch.no_grad():
                opened.check_answers(logits_of(model, x[:_UNIT], y[:_UNIT]))
        found = []
        for first in range(0, len(x), _UNIT):
            unit, rows = f"points-{first:06d}", slice(first, first + _UNIT)
            done = opened.get(unit) if opened is not None else None
            if done is None:
                done = vote(x[rows], y[rows])
                if opened is not None:
                    opened.put(unit, done)
            found.append(done)
            if progress is not None:
                progress(min(first + _UNIT, len(x)), len(x))
        return {key: torch.cat([each[key] for each in found]) for key in found[0]}

    def _votes(self, model: nn.Module, x: Tensor, y: Tensor, purpose: str, samples: int) -> Tensor:
        """Count the answers to noisy inputs: shape [n, classes]."""
        points = [str(Fingerprint(point)) for point in x]
        blocks = [
            (row, start) for row in range(len(x)) for start in range(0, samples, _BLOCK)
        ]  # several points share a forward pass where a block is smaller than a batch
        together = max(1, self.batch_size // _BLOCK)
        with attacked(model), torch.no_grad():
            classes = logits_of(model, x[:1], y[:1]).shape[1]
            votes = torch.zeros(len(x), classes, dtype=torch.long)
            for place in range(0, len(blocks), together):
                noisy, rows = [], []
                for row, start in blocks[place : place + together]:
                    size = min(_BLOCK, samples - start)
                    noise = self._noise(x[row], points[row], purpose, start, size)
                    noisy.append(x[row] + noise)
                    rows.append(torch.full((size,), row))
                votes += self._counted(model, torch.cat(noisy), torch.cat(rows), y, votes.shape)
        return votes

    def _counted(
        self, model: nn.Module, points: Tensor, rows: Tensor, y: Tensor, shape: torch.Size
    ) -> Tensor:
        """Count the answers to points that stand for ``rows``."""
        votes = torch.zeros(shape, dtype=torch.long).flatten()
        for i in range(0, len(points), self.batch_size):
            at = rows[i : i + self.batch_size]
            logits = check_logits(model(points[i : i + self.batch_size]), y[at.to(y.device)])
            answers = logits.argmax(1).cpu()
            votes += torch.bincount(at * shape[1] + answers, minlength=len(votes))
        return votes.view(shape)

    def _noise(self, like: Tensor, point: str, purpose: str, start: int, size: int) -> Tensor:
        """One block of a point's noise, by a generator of its own."""
        key = f"{self.seed}/{purpose}/{point}/{start}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "little")
        generator = torch.Generator(like.device).manual_seed(seed)
        shape = (size, *like.shape)
        return self.sigma * torch.randn(
            shape, generator=generator, dtype=like.dtype, device=like.device
        )

    def _fingerprint(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, str]:
        return {
            "model": str(Fingerprint(model)),
            "points": str(Fingerprint(x, y)),
            "smoothing": f"sigma {self.sigma}, n0 {self.n0}, n {self.n}, seed {self.seed}",
            "noise": "seeded by each point's values",
        }
