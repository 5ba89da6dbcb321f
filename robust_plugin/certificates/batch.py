"""One batch of points, with the verdicts that provers and attacks give them one after another.

``verify`` makes a ``Batch`` for each batch of points and calls ``run`` for each method in order.
"""

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
    """The points of one batch with their verdicts so far.

    Args:
        model: the network that the proofs are about; it also decides whether an attack's result is
            misclassified.
        fast: function that returns a faster copy of the model, which the attacks run on; it is
            called only if there is an attack.
        x: inputs, shape [B, ...].
        y: labels, shape [B].
        threat: threat model of all methods.
        first: index of the batch's first point among all points, used in error messages.

    Attributes:
        verdict: code of each point's verdict (``VERIFIED``, ``FALSIFIED``, ``MISCLASSIFIED`` or
            ``UNKNOWN``), shape [B].
        method: index of the method that verified or falsified each point, shape [B]; -1 for the
            other two verdicts.
        margin: largest lower bound of min_{j != y} f_y - f_j that a prover has found, shape [B];
            -inf if no prover has run on the point.
        spent: seconds spent on each point so far, shape [B]; the time of a call counts in equal
            parts for its points.
        x_adv: the adversarial example of each falsified point, the input itself for all other
            points; shape [B, ...].
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
        self.method = torch.full_like(self.verdict, -1)
        self.margin = torch.full_like(self.verdict, -torch.inf, dtype=torch.float32)
        self.spent = torch.zeros_like(self.margin)
        self.x_adv = x.clone()

    def run(self, number: int, name: str, method: Prover | Attack, seconds: float | None) -> None:
        """Run one prover or attack and update the verdicts.

        A prover gets the points whose verdict is unknown. An attack also gets the verified points,
        to check the proofs.

        Args:
            number: index of the method among all methods, from 0.
            name: the method's name, for errors.
            method: the prover or attack.
            seconds: time limit per point; points of unknown verdict that have reached it are left
                out. None for no limit.

        Raises:
            ValueError: if an attack finds an adversarial example for a verified point.
        """
        begun = time.monotonic()
        due = self.verdict == UNKNOWN
        if seconds is not None:
            due &= self.spent < seconds
        if isinstance(method, Prover):
            rows = due.nonzero().flatten()
            if len(rows):
                self._prove(number, method, rows)
        else:
            rows = (due | (self.verdict == VERIFIED)).nonzero().flatten()
            if len(rows):
                self._attack(number, name, method, rows)
        self.spent[rows] += (time.monotonic() - begun) / max(1, len(rows))

    def _prove(self, number: int, method: Prover, rows: Tensor) -> None:
        margins = method.margins(self.model, self.x[rows], self.y[rows])
        others = margins.scatter(1, self.y[rows][:, None], torch.inf).amin(1).float()
        # NaN is no bound.
        self.margin[rows] = torch.fmax(self.margin[rows], others.nan_to_num(nan=-torch.inf))
        sure = rows[proved(margins, self.y[rows])]
        self.verdict[sure], self.method[sure] = VERIFIED, number

    def _attack(self, number: int, name: str, method: Attack, rows: Tensor) -> None:
        x_adv = guarded(method, self.threat)(self.fast(), self.x[rows], self.y[rows])
        with attacked(self.model), torch.no_grad(), exact(x_adv):
            fooled = self.model(x_adv).argmax(1) != self.y[rows]
        wrong = rows[fooled & (self.verdict[rows] == VERIFIED)]
        if len(wrong):
            raise ValueError(
                f"{name} found a counterexample to point {self.first + int(wrong[0])}, which is "
                f"verified with margin {float(self.margin[wrong[0]]):.3g}: the proof is wrong."
            )
        self.x_adv[rows[fooled]] = x_adv[fooled]
        self.verdict[rows[fooled]], self.method[rows[fooled]] = FALSIFIED, number

    def result(self) -> dict[str, Tensor]:
        """Return the results of all points of the batch as tensors on the CPU.

        The keys are ``"verdict"``, ``"stage"`` (the attribute ``method``), ``"margin"`` and
        ``"x_adv"``; the class docstring describes the values.
        """
        return {
            "verdict": self.verdict.cpu(),
            "stage": self.method.cpu(),  # the key that journals use
            "margin": self.margin.cpu(),
            "x_adv": self.x_adv.cpu(),
        }
