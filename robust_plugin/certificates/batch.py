"""A batch of points, and what certifiers and attacks decide about them one after another."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack, attacked, guarded
from robust_plugin.attacks.logits import logits_of
from robust_plugin.certificates.checks import proved
from robust_plugin.certificates.contract import FALSIFIED, MISCLASSIFIED, UNKNOWN, VERIFIED, Prover
from robust_plugin.runtime.contexts import exact
from robust_plugin.threat.model import ThreatModel


class Batch:
    """The points that go through the stages together.

    Args:
        model: judges the points, and is what is proved.
        fast: makes a copy of it, which attacks see; called where there is an attack.
        x: shape [B, ...].
        y: shape [B].
        threat: of all stages.
        first: the number of the first point, for errors.

    Attributes:
        verdict: codes, shape [B].
        stage: who gave it, -1 for nobody.
        margin: the largest lower bound of min_j f_y - f_j so far.
        spent: seconds.
        x_adv: counterexamples where there are any.
    """

    def __init__(
        self,
        model: nn.Module,
        fast: Callable[[], nn.Module],
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        first: int,
    ) -> None:
        self.model, self.fast, self.x, self.y = model, fast, x, y
        self.threat, self.first = threat, first
        with attacked(model), torch.no_grad(), exact(x):
            right = logits_of(model, x, y).argmax(1) == y
        self.verdict = torch.where(right, UNKNOWN, MISCLASSIFIED)
        self.stage = torch.full_like(self.verdict, -1)
        self.margin = torch.full_like(self.verdict, -torch.inf, dtype=torch.float32)
        self.spent = torch.zeros_like(self.margin)
        self.x_adv = x.clone()

    def run(self, number: int, name: str, stage: Prover | Attack, seconds: float | None) -> None:
        """Let one stage decide what it can."""
        begun = time.monotonic()
        due = self.verdict == UNKNOWN
        if seconds is not None:
            due &= self.spent < seconds
        if isinstance(stage, Prover):
            rows = due.nonzero().flatten()
            if len(rows):
                self._prove(number, stage, rows)
        else:
            rows = (due | (self.verdict == VERIFIED)).nonzero().flatten()
            if len(rows):
                self._attack(number, name, stage, rows)
        self.spent[rows] += (time.monotonic() - begun) / max(1, len(rows))

    def _prove(self, number: int, stage: Prover, rows: Tensor) -> None:
        margins = stage.margins(self.model, self.x[rows], self.y[rows])
        others = margins.scatter(1, self.y[rows][:, None], torch.inf).amin(1).float()
        # NaN is no bound.
        self.margin[rows] = torch.fmax(self.margin[rows], others.nan_to_num(nan=-torch.inf))
        sure = rows[proved(margins, self.y[rows])]
        self.verdict[sure], self.stage[sure] = VERIFIED, number

    def _attack(self, number: int, name: str, stage: Attack, rows: Tensor) -> None:
        x_adv = guarded(stage, self.threat)(self.fast(), self.x[rows], self.y[rows])
        with attacked(self.model), torch.no_grad(), exact(x_adv):
            fooled = self.model(x_adv).argmax(1) != self.y[rows]
        wrong = rows[fooled & (self.verdict[rows] == VERIFIED)]
        if len(wrong):
            raise ValueError(
                f"{name} found a counterexample to point {self.first + int(wrong[0])}, which is "
                f"verified with margin {float(self.margin[wrong[0]]):.3g}: the proof is wrong."
            )
        self.x_adv[rows[fooled]] = x_adv[fooled]
        self.verdict[rows[fooled]], self.stage[rows[fooled]] = FALSIFIED, number

    def result(self) -> dict[str, Tensor]:
        """Return what is known of each point."""
        return {
            "verdict": self.verdict.cpu(),
            "stage": self.stage.cpu(),
            "margin": self.margin.cpu(),
            "x_adv": self.x_adv.cpu(),
        }
