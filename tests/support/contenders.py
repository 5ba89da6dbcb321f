"""Objectives, optimizer and data that all contenders of the training-step benchmark share."""

from __future__ import annotations

import torch
from straightforward import BETA, EPS, STEP_SIZE, STEPS, straightforward_pgd, straightforward_trades
from torch import Tensor

from robust_plugin import ThreatModel, adversarial, pgd, trades

BATCH = 16
THREAT = ThreatModel("Linf", eps=EPS)
OURS = {
    "trades": trades(THREAT, beta=BETA, steps=STEPS, step_size=STEP_SIZE),
    "pgd": adversarial(pgd(THREAT, steps=STEPS, step_size=STEP_SIZE)),
}
STRAIGHTFORWARD = {"trades": straightforward_trades, "pgd": straightforward_pgd}


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)


def random_batch(size: int = BATCH) -> list[Tensor]:
    return [torch.rand(size, 3, 32, 32), torch.randint(10, (size,))]
