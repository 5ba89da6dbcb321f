"""Certificates of a finished network: proofs by bounds, and randomized smoothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robust_plugin.recipes.config.schema import DataConfig, ThreatConfig

CertifierName = Literal["none", "ibp", "crown-ibp", "cascade", "cascade-fixed"]


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and how.

    Attributes:
        model: a name or package.module:function; a run folder knows its own.
        weights: safetensors, or a state_dict that weights_only reads; likewise.
        data: whose test points are taken.
        threat: what the adversary may do.
        attacks: any of pgd, autoattack, autoattack-plus, autoattack-rand, screen (apgd-ce and
            apgd-t), fab (the nearest adversarial inputs, for the security curve), and
            torchattacks.NAME for its classes.
        certify: what proves points: none, ibp, crown-ibp, cascade (IBP, CROWN, alpha-CROWN) or
            cascade-fixed (without alpha-CROWN on all slopes).
        seconds: budget of a cascade for each point, which is unknown once it is used up.
        steps: gradient steps of PGD from each start.
        restarts: random starts of PGD.
        n: how many of the first test points; None for all.
        radii: of the security curve's table; by default around eps.
        checks: how many test points the checks for obfuscated gradients get; 0 for none.
        small: small.safetensors of a run on channels; the network without them is measured.
        parent: weights of the dense network it was pruned from, for the transfer check; a run
            folder knows its own.
        seed: seed of the random numbers that attacks draw.
        journal: a folder from which interrupted AutoAttacks and cascades of proofs go on.
        batch_size: points at a time.
        device: cpu, cuda, cuda:1...; auto takes cuda where there is one.
        threads: number of CPU threads torch may use; None is torch's own choice.
    """

    model: str = "digits-cnn"
    weights: Path = Path("model.safetensors")
    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatConfig = field(default_factory=ThreatConfig)
    attacks: tuple[str, ...] = ("pgd", "autoattack")
    certify: CertifierName = "none"
    seconds: float | None = None
    steps: int = 20
    restarts: int = 5
    n: int | None = None
    radii: tuple[str, ...] = ()
    checks: int = 100
    small: Path | None = None
    parent: Path | None = None
    seed: int = 0
    journal: Path | None = None
    batch_size: int = 250
    device: str = "auto"
    threads: int | None = None
