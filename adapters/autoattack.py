"""AutoAttack (Croce and Hein 2020), the parameter-free ensemble that robust accuracy is quoted by.

The library is ``pyautoattack``, published by AutoAttack's authors; here its public standard
evaluation: APGD-CE, targeted APGD-DLR, targeted FAB and Square.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.guard import guarded
from robust_plugin.threat import ThreatModel

# The targeted attacks try the nine most likely wrong classes, where there are as many.
_TARGETS = 9
# DLR divides by the distance of the first to the third and fourth logit.
_LEAST_CLASSES = 4


@dataclass(frozen=True)
class AutoAttack:
    """The standard version as an attack: ``attack(model, x, y) -> x_adv``.

    The library seeds the global generators and disturbs debuggers; both are kept away from the
    caller. Points that it cannot fool come back as they were.

    Attributes:
        threat: norm and eps; the box has to be [0, 1], which the library takes for granted.
        seed: of its random starts; None draws one from torch's global generator at each call.
        batch_size: points attacked at a time.

    Raises:
        ValueError: for another box, and, when called, for fewer than four classes.
        ImportError: when called without pyautoattack.
    """

    threat: ThreatModel
    seed: int | None = None
    batch_size: int = 250

    def __post_init__(self) -> None:
        if (self.threat.low, self.threat.high) != (0.0, 1.0):
            raise ValueError(
                f"AutoAttack works on inputs in [0, 1]; the threat model has [{self.threat.low:g},"
                f" {self.threat.high:g}]. Scale inside the model."
            )

    @property
    def name(self) -> str:
        """The row's name in a report."""
        return "AutoAttack"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial inputs of the shape of ``x``."""
        return guarded(self._run, self.threat)(model, x, y)

    def check(self, classes: int) -> None:
        """Raise now what a call would raise after hours of training.

        Raises:
            ImportError: without pyautoattack.
            ValueError: for fewer than four classes.
        """
        _library()
        if classes < _LEAST_CLASSES:
            raise ValueError(
                f"the model has {classes} classes; AutoAttack's DLR loss needs {_LEAST_CLASSES}. "
                "Take pgd(threat, loss='margin', restarts=...)."
            )

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        self.check(classes)
        seed = self.seed if self.seed is not None else int(torch.randint(2**31, (1,)))
        tracer = sys.gettrace()
        try:
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                library = _library()(
                    model, norm=self.threat.norm, eps=self.threat.eps, seed=seed, device=x.device
                )
                library.apgd_targeted.n_target_classes = min(_TARGETS, classes - 1)
                library.fab.n_target_classes = min(_TARGETS, classes - 1)
                x_adv, _ = library.run_standard_evaluation(x, y, batch_size=self.batch_size)
        finally:
            sys.settrace(tracer)
        adversarial: Tensor = x_adv
        return adversarial


def _library() -> Any:
    try:
        from pyautoattack import AutoAttack as Library  # noqa: TID251
    except ImportError as error:
        raise ImportError("AutoAttack needs: pip install pyautoattack") from error
    return Library
