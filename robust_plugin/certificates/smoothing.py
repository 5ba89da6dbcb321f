"""Randomized smoothing (Cohen et al. 2019): certified L2 radii of any classifier.

The smoothed classifier g predicts the class that the base classifier f gives most often under
Gaussian noise: g(x) = argmax_c P(f(x + sigma N) = c). The statistical tests are scipy's, which is
imported when first needed.
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
from robust_plugin.certificates.radii import ABSTAIN, Certificates
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.runtime.journal import Fingerprint, Journal, by_points
from robust_plugin.runtime.progress import ProgressOption, check_progress, reporting
from robust_plugin.runtime.values import check_call, check_model, is_number, is_whole
from robust_plugin.threat.units import check_box, check_sigma, check_units

# Number of noise samples drawn at once, independent of the batch size.
_BLOCK = 100
# Number of points in one file of the journal.
_UNIT = 50
# A function that is told how many points are finished.
Tell = Callable[[int], None]


@explain_wrong_calls
@dataclass(frozen=True)
class Smoothed:
    """A smoothed classifier, estimated by Monte Carlo with noise seeded per point.

    The noise of a point depends on the seed, the point's values and the device that draws it. It
    does not depend on the point's index, on other points, on the batch size or on interruptions.
    Equal points get the same noise and so the same result. Each certificate by itself holds with
    probability 1 - alpha over the seed, as the theorem states for one point; certificates of
    different points need not be independent.

    Attributes:
        sigma: standard deviation of the noise, in input units.
        n0: number of noisy copies of a point by whose classes ``certify`` chooses the class.
        n: number of further noisy copies by which ``certify`` certifies that class; also the number
            that ``predict`` uses.
        alpha: probability that a certificate or prediction is wrong, between 0 and 1.
        batch_size: number of noisy inputs in one forward pass, over several points.
        seed: seed of the noise.
        low: smallest legal input value.
        high: largest legal input value.

    Raises:
        ValueError: for a value that is not legal; the message says what is.

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
        check_box(self.low, self.high)
        check_sigma(self.sigma, self.low, self.high)
        if not (is_number(self.alpha) and 0 < self.alpha < 1):
            raise ValueError(f"alpha is {self.alpha!r}; legal: between 0 and 1.")
        for name in ("n0", "n", "batch_size"):
            count = getattr(self, name)
            if not (is_whole(count) and count >= 1):
                raise ValueError(f"{name} is {count!r}; legal: at least 1, whole.")
        if not is_whole(self.seed):
            raise ValueError(f"seed is {self.seed!r}; legal: a whole number.")

    def certify(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        journal: str | Path | None = None,
        progress: ProgressOption = False,
    ) -> Certificates:
        """Return the smoothed classifier's predictions with certified L2 radii.

        Each certificate holds with probability 1 - alpha. The class to certify is the most frequent
        one among n0 noisy votes. Then k of n new votes are for that class, p is the one-sided
        Clopper-Pearson lower bound of its probability, and the radius is sigma Phi^-1(p) if p >
        1/2; otherwise the classifier abstains (Cohen et al. 2019, CERTIFY).

        Args:
            model: the base classifier f. It runs in evaluation mode, and its modes are restored.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].
            journal: folder in which finished points are kept, so that an interrupted call continues
                from there; None to keep nothing.
            progress: True for a progress bar of tqdm, or a function that is called with a
                ``Progress`` at the start, after each point or a few of them, and at the end; False
                to report nothing.

        Raises:
            ValueError: for inputs outside [low, high] (they would be in another unit than sigma) or
                that the model cannot take, labels out of range, logits that are not finite, or a
                journal of another computation.
            ImportError: if scipy is not installed.
        """
        from scipy.stats import beta, norm

        check_call(model, x, y)
        model = unwrapped(model)

        def vote(x: Tensor, y: Tensor, tell: Tell) -> dict[str, Tensor]:
            chosen = self._votes(model, x, y, "choose", self.n0).argmax(1)
            votes = self._votes(model, x, y, "certify", self.n, tell)
            return {"chosen": chosen, "count": votes.gather(1, chosen[:, None])[:, 0]}

        found = self._by_units("certify", model, x, y, vote, journal, progress)
        chosen, count = found["chosen"], found["count"]
        # The formula is undefined at k = 0, where the bound is 0.
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
        progress: ProgressOption = False,
    ) -> Tensor:
        """Return the smoothed classifier's prediction for each point, shape [B].

        The prediction is ``ABSTAIN`` (-1) if a two-sided binomial test cannot tell apart the two
        most frequent classes of n votes. Each prediction is wrong with probability alpha at most
        (Cohen et al. 2019, PREDICT).

        Args:
            model: the base classifier f. It runs in evaluation mode, and its modes are restored.
            x: inputs, shape [B, ...], within [low, high].
            journal: folder in which finished points are kept, so that an interrupted call continues
                from there; None to keep nothing.
            progress: True for a progress bar of tqdm, or a function that is called with a
                ``Progress`` at the start, after each point or a few of them, and at the end; False
                to report nothing.

        Raises:
            ValueError: for inputs outside [low, high] or that the model cannot take, logits that
                are not finite, or a journal of another computation.
            ImportError: if scipy is not installed.
        """
        from scipy.stats import binomtest

        check_model(model)
        check_units(x, self.low, self.high, "Smoothed")
        model, none = unwrapped(model), torch.zeros(len(x), dtype=torch.long, device=x.device)

        def vote(x: Tensor, y: Tensor, tell: Tell) -> dict[str, Tensor]:
            votes = self._votes(model, x, y, "predict", self.n, tell)
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
        vote: Callable[[Tensor, Tensor, Tell], dict[str, Tensor]],
        journal: str | Path | None,
        progress: ProgressOption,
    ) -> dict[str, Tensor]:
        """Call ``vote`` on 50 points at a time, and return its tensors for all points.

        Args:
            purpose: name of the computation, such as ``"certify"``; it decides, with model, points
                and settings, whether a journal belongs to this call.
            model: the base classifier f, without wrappers.
            x: inputs, shape [B, ...].
            y: labels, shape [B].
            vote: function of some inputs, their labels, and a function to tell how many of these
                points are finished; it returns tensors by name, whose first dimension is the point.
            journal: folder of the journal, which has one file per 50 points, or None.
            progress: as in ``certify``.
        """
        check_units(x, self.low, self.high, "Smoothed")
        check_pairs(x, y)
        check_progress(progress)
        opened = None
        if journal is not None:
            opened = Journal(journal, {"purpose": purpose, **self._fingerprint(model, x, y)})
            with attacked(model), torch.no_grad():
                opened.check_answers(logits_of(model, x[:_UNIT], y[:_UNIT]))

        task = f"randomized smoothing: {purpose}"
        with reporting(progress, task, total=len(x), unit="points") as show:

            def compute(rows: slice) -> dict[str, Tensor]:
                return vote(x[rows], y[rows], lambda done: show(rows.start + done))

            return by_points(len(x), _UNIT, compute, journal=opened, show=show)

    def _votes(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        purpose: str,
        samples: int,
        tell: Tell | None = None,
    ) -> Tensor:
        """Classify noisy copies of each point, and return how many votes each class gets.

        Args:
            model: the base classifier f, without wrappers.
            x: inputs, shape [B, ...].
            y: labels, shape [B]; only their range is checked.
            purpose: name of the votes, such as ``"choose"``; votes with different names have
                independent noise.
            samples: number of votes per point.
            tell: function that is told the number of finished points each time that it grows.

        Returns:
            Tensor: number of votes per point and class, shape [B, classes].
        """
        points = [str(Fingerprint(point)) for point in x]
        blocks = [
            (row, start) for row in range(len(x)) for start in range(0, samples, _BLOCK)
        ]  # several points share a forward pass if a block is smaller than a batch
        together, finished = max(1, self.batch_size // _BLOCK), 0
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
                if tell is not None and row > finished:  # the points before the last one begun
                    tell(finished := row)
        return votes

    def _counted(
        self, model: nn.Module, points: Tensor, rows: Tensor, y: Tensor, shape: torch.Size
    ) -> Tensor:
        """Classify a list of noisy inputs, and return the number of votes per point and class.

        Args:
            model: the base classifier f, without wrappers.
            points: noisy inputs, shape [N, ...].
            rows: for each noisy input, the index of the point that it was made of; shape [N].
            y: labels of the points, shape [B].
            shape: the result's shape, [B, classes].
        """
        votes = torch.zeros(shape, dtype=torch.long).flatten()
        for i in range(0, len(points), self.batch_size):
            at = rows[i : i + self.batch_size]
            logits = check_logits(model(points[i : i + self.batch_size]), y[at.to(y.device)])
            answers = logits.argmax(1).cpu()
            votes += torch.bincount(at * shape[1] + answers, minlength=len(votes))
        return votes.view(shape)

    def _noise(self, like: Tensor, point: str, purpose: str, start: int, size: int) -> Tensor:
        """Return one block of a point's noise, shape [size, ...], from a generator of its own.

        Args:
            like: the point; the noise has its shape, dtype and device.
            point: fingerprint of the point, part of the seed.
            purpose: name of the votes, such as ``"choose"``, part of the seed.
            start: index of the block's first sample among the point's samples, part of the seed.
            size: number of samples in the block.
        """
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
