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
            package.module:function for a function of your own that returns an nn.Module. If a run
            folder is given, the default is its network.
        checkpoint: file with the weights of the network, as safetensors or as a state_dict that
            torch.load reads with weights_only=True. If a run folder is given, the default is its
            file.
        data: the data set whose test points are used. The settings data.extra, data.extra_share,
            data.batch_size and data.workers are for training and have no effect here.
        threat: the threat model: how far an attack may change the input.
        attacks: names of the attacks, separated by spaces: pgd, autoattack, autoattack-plus (with
            more attacks), autoattack-rand (for networks with random outputs), screen (only the
            attacks apgd-ce and apgd-t of AutoAttack: faster, but weaker), fab (finds the nearest
            adversarial example of each point, for the security curve, which is the accuracy at
            several eps), and torchattacks.NAME for an attack of the library torchattacks.
        certify: method that proves test points robust: none, ibp, crown-ibp, cascade (IBP, CROWN
            and alpha-CROWN in turn, until the point is decided), or cascade-fixed (faster: the same
            without the last step, in which alpha-CROWN also optimises the bounds of the inner
            layers).
        seconds: time limit per test point, in seconds, for the methods cascade and cascade-fixed of
            certify; a point that is not decided in time counts as unknown. None for no limit.
        steps: number of gradient steps of the attack pgd, from each random start.
        restarts: number of random starts of the attack pgd.
        n: number of test points to evaluate, the first ones of the test set; None for all.
        radii: values of eps at which the security curve is printed as a table, separated by spaces;
            by default six values from a quarter to four times the eps of the threat model. Used
            only if fab is among the attacks.
        checks: number of test points for the checks for obfuscated gradients; 0 skips these checks.
        small: path of the small.safetensors of a run that pruned channels. The smaller network in
            it, without the removed channels, is then evaluated; None evaluates the network at full
            size. If a run folder is given, the default is its file.
        parent: file with the weights of the dense network that this one was pruned from. The checks
            for obfuscated gradients then also try adversarial examples that were made against the
            dense network. None leaves this out. If a run folder is given, the default is its file.
        seed: seed of the random numbers that the attacks use.
        journal: folder where AutoAttack and the methods cascade and cascade-fixed save finished
            batches. By default that is a folder in --out or, without --out, in the run folder; the
            same command continues from it after an interruption, and it is removed when the
            evaluation has finished. A folder that you name is kept.
        batch_size: number of test points per batch.
        device: device to compute on: cpu, cuda, cuda:1, ... With auto it is a GPU if there is one,
            else the CPU.
        threads: number of CPU threads that torch may use; None for torch's own choice.
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
