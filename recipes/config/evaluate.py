"""The settings of the command ``evaluate``, as a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robust_plugin.recipes.config.schema import DataConfig, ThreatConfig

CertifierName = Literal["none", "ibp", "crown-ibp", "cascade", "cascade-fixed"]


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured of a finished network, and how.

    Attributes:
        model: network to evaluate: a built-in name such as digits-cnn, resnet18 or wrn-28-4, or
            package.module:function for your own (the function returns an nn.Module). A run folder
            brings its own.
        checkpoint: file with the weights of the network, as safetensors or as a state_dict that
            torch.load reads with weights_only=True. A run folder brings its own.
        data: the data set whose test points are used. Settings of training data (data.extra,
            data.extra_share, data.batch_size, data.workers) have no effect here.
        threat: the threat model: what an attack may change.
        attacks: names of the attacks, separated by spaces: pgd, autoattack, autoattack-plus,
            autoattack-rand, screen (a faster AutoAttack with apgd-ce and apgd-t only), fab (finds
            the nearest adversarial inputs, for the security curve), and torchattacks.NAME for an
            attack of that library.
        certify: method that proves test points robust: none, ibp, crown-ibp, cascade (IBP, CROWN,
            alpha-CROWN), or cascade-fixed, which leaves out alpha-CROWN on all slopes.
        seconds: time limit per point for a cascade of proofs, in seconds; a point that is not
            decided in time counts as unknown. None for no limit.
        steps: number of gradient steps per start of the attack pgd.
        restarts: number of random starts of the attack pgd.
        n: number of test points, counted from the first; None for all.
        radii: values of eps for the table of the security curve, separated by spaces; by default
            several values around the eps of the threat model. The attack fab makes the curve.
        checks: number of test points for the checks for obfuscated gradients; 0 to skip them.
        small: file small.safetensors of a run that pruned channels; the smaller network in it,
            without the removed channels, is evaluated. None evaluates the network at full size.
        parent: file with the weights of the dense network that this one was pruned from; the checks
            for obfuscated gradients then also transfer attacks from it. None leaves that check out.
            A run folder brings its own.
        seed: seed of the random numbers that attacks use.
        journal: folder for intermediate results of AutoAttack and of cascades of proofs, from which
            an interrupted evaluation continues. None keeps none.
        batch_size: number of test points per batch.
        device: device to compute on: cpu, cuda, cuda:1, ... With auto it is a GPU if there is one.
        threads: number of CPU threads torch may use; None for torch's own choice.
    """

    model: str = "digits-cnn"
    checkpoint: Path = Path("model.safetensors")
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
