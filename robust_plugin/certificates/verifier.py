"""``Verifier``: a certifier for ``evaluate`` that runs several provers and attacks by ``verify``.

``evaluate`` takes one certifier. A Verifier stores the methods and settings of a ``verify`` call,
and makes this call when ``evaluate`` runs the certifier; the verdict on each point goes into the
report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack
from robust_plugin.certificates.contract import Prover
from robust_plugin.certificates.verification import Verification, threat_of, verify
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.progress import ProgressOption, check_progress
from robust_plugin.runtime.tables import listed
from robust_plugin.threat.model import ThreatModel


@explain_wrong_calls
@dataclass(frozen=True)
class Verifier:
    """A certifier that runs several provers and attacks, one after another, by calling ``verify``.

    It is made for ``evaluate(..., certifier=...)``. A point is proved if any of the provers proves
    it. Provers are not run on points for which an attack has already found an adversarial example.

    Attributes:
        methods: provers and attacks by name, in the order they run, cheap ones first.
        batch_size: number of points that run through the methods together.
        seconds: time limit per point, in seconds; None for no limit.
        journal: folder in which finished batches are kept, so that an interrupted verification
            continues from there; None to keep nothing.
        progress: True for a progress bar of tqdm, or a function that is called with a ``Progress``
            at the start, after each batch and at the end; False to report nothing.

    Raises:
        TypeError: if ``methods`` is not a mapping.
        ValueError: for methods of several threat models or none, or without a prover.
    """

    methods: Mapping[str, Prover | Attack]
    batch_size: int = 50
    seconds: float | None = None
    journal: str | Path | None = None
    progress: ProgressOption = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        threat_of(self.methods)
        check_progress(self.progress)
        if not self._provers():
            raise ValueError(
                f"methods are {list(self.methods)}; none of them is a prover: give one, such as "
                "IBP(threat)."
            )

    def __repr__(self) -> str:
        """Return one line: the names of the methods, without their settings."""
        more = "" if self.seconds is None else f", {self.seconds} s per point"
        return f"Verifier({listed(self.methods)}; {self.threat}{more})"

    @property
    def settings(self) -> str:
        """The methods with all their settings, and those of this object, for reports."""
        return (
            f"Verifier(methods={dict(self.methods)!r}, batch_size={self.batch_size}, "
            f"seconds={self.seconds})"
        )

    @property
    def threat(self) -> ThreatModel:
        """The threat model that all methods share."""
        return threat_of(self.methods)

    @property
    def name(self) -> str:
        """The names of the provers in their order, such as ``"IBP + CROWN"``."""
        return " + ".join(self._provers())

    @property
    def whole(self) -> bool:
        """Always True: ``evaluate`` gives this certifier all points in one call."""
        return True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return which points are proved; bool, shape [B].

        Raises:
            ValueError: if an attack among the methods finds an adversarial example for a proved
                point.
        """
        return torch.tensor(self.decide(model, x, y).verified, device=x.device)

    def decide(self, model: nn.Module, x: Tensor, y: Tensor) -> Verification:
        """Return the verdict on each point, and the method that gave it.

        ``evaluate`` calls this instead of the certifier itself, and puts the verdicts into the
        report.
        """
        return verify(
            model,
            x,
            y,
            self.methods,
            batch_size=self.batch_size,
            seconds=self.seconds,
            journal=self.journal,
            progress=self.progress,
        )

    def _provers(self) -> list[str]:
        return [name for name, method in self.methods.items() if isinstance(method, Prover)]
