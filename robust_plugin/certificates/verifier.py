"""A certifier out of several: what one proves the next need not, and the report names them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack
from robust_plugin.certificates.contract import Prover
from robust_plugin.certificates.verification import Verification, threat_of, verify
from robust_plugin.threat.model import ThreatModel


@dataclass(frozen=True)
class Verifier:
    """``verify`` as a certifier of ``evaluate``: proved where any prover proves.

    Attributes:
        stages: certifiers and attacks by name, cheap before expensive (see ``verify``).
        batch_size: points that go through the stages together.
        seconds: budget a point; None for no limit.
        journal: a folder from which an interrupted verification goes on.
        progress: called with the points done, and all of them.

    Raises:
        ValueError: for stages of several threat models or none, or without a prover.
    """

    stages: Mapping[str, Prover | Attack]
    batch_size: int = 50
    seconds: float | None = None
    journal: str | Path | None = None
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        threat_of(self.stages)
        if not self._provers():
            raise ValueError(f"stages are {list(self.stages)}; none of them proves: give a prover.")

    @property
    def threat(self) -> ThreatModel:
        """The stages' threat model."""
        return threat_of(self.stages)

    @property
    def name(self) -> str:
        """Who may prove, in their order, such as ``"IBP + CROWN"``."""
        return " + ".join(self._provers())

    @property
    def whole(self) -> bool:
        """That ``evaluate`` hands over all points in one call."""
        return True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return which points are proved, bool of shape [B].

        Raises:
            ValueError: if an attack among the stages fools a point that was proved.
        """
        return torch.tensor(self.decide(model, x, y).verified, device=x.device)

    def decide(self, model: nn.Module, x: Tensor, y: Tensor) -> Verification:
        """Return what is known of each point; ``evaluate`` puts it into the report."""
        return verify(
            model,
            x,
            y,
            self.stages,
            batch_size=self.batch_size,
            seconds=self.seconds,
            journal=self.journal,
            progress=self.progress,
        )

    def _provers(self) -> list[str]:
        return [name for name, stage in self.stages.items() if isinstance(stage, Prover)]
