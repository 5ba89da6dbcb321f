"""Configurations: frozen dataclasses, YAML presets, and the command line over both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.threat.model import Norm, ThreatModel


@dataclass(frozen=True)
class DataConfig:
    """What is learned from.

    Attributes:
        name: digits, folder, cifar10, cifar100 or svhn.
        folder: where the files lie.
        validation: share of the training points held out; None is the data set's own default.
        image_size: resize a folder's images to it.
        augmentation: none, crop, flip or crop+flip, for a folder also resized-crop+flip (as for
            ImageNet); None is the data set's own default.
        test: how many of the digits are test points; None is 400.
        extra: training images beside the data set's own: an .npz with images and labels, or a
            folder with images.npy and labels.npy.
        extra_share: of them in each batch; an epoch is one pass over the data set's own.
        batch_size: points a step, over all processes and micro-batches.
        workers: that load, in each process.
    """

    name: str = "digits"
    folder: Path | None = None
    validation: float | None = None
    image_size: int | None = None
    augmentation: str | None = None
    test: int | None = None
    extra: Path | None = None
    extra_share: float = 0.5
    batch_size: int = 128
    workers: int = 0


@dataclass(frozen=True)
class ThreatConfig:
    """What the adversary may do: all x' with ||x' - x|| <= eps, values in [0, 1].

    Attributes:
        norm: Linf or L2; L1 for AutoAttack alone.
        eps: radius, a number or a fraction such as 8/255.
    """

    norm: Norm = "Linf"
    eps: str = "8/255"

    def build(self) -> ThreatModel:
        """Return the threat model."""
        return ThreatModel(self.norm, self.eps)


@dataclass(frozen=True)
class StageConfig:
    """One phase of training: SGD with a cosine from lr to nearly zero, step by step.

    Attributes:
        epochs: passes over the training points.
        lr: the learning rate at the first step.
        optimizer: sgd (Nesterov off) or adam.
        momentum: of sgd.
        weight_decay: of everything but scores and rates, unless decay_scores.
        decay_scores: also decay scores and rates, as the papers' code does; it pulls every rate
            towards one half.
        select: keep the last epoch's weights, or those of the best validation epoch.
        ramp: share of the epochs over which eps and the weights of a certified objective rise,
            step by step; 0 is all of it at once, right for a network that has been through it.
    """

    epochs: int = 100
    lr: float = 0.1
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_scores: bool = False
    select: Literal["last", "best"] = "best"
    ramp: float = 0.0


@dataclass(frozen=True)
class EvaluationConfig:
    """How the result is measured, on test points that nothing else has seen.

    Attributes:
        steps: of PGD.
        restarts: of PGD.
        autoattack: how many of the first test points AutoAttack gets; 0 for none.
        version: of AutoAttack; screen (apgd-ce and apgd-t) says so in the report.
        verify: how many of them are to be proved; 0 for none.
        certify: by what: ibp, crown-ibp (for networks whose inner layers are too large for CROWN),
            cascade (IBP, CROWN, alpha-CROWN), or cascade-fixed, without alpha-CROWN on all slopes.
        seconds: budget of a cascade for each point, which is unknown once it is used up; None for
            no limit.
        smooth: how many of them randomized smoothing certifies, at the objective's sigma.
        votes: noisy votes for each of these.
        batch_size: points at a time.
    """

    steps: int = 20
    restarts: int = 5
    autoattack: int = 0
    version: Literal["standard", "plus", "rand", "screen"] = "standard"
    verify: int = 0
    certify: Literal["ibp", "crown-ibp", "cascade", "cascade-fixed"] = "cascade"
    seconds: float | None = None
    smooth: int = 0
    votes: int = 10_000
    batch_size: int = 500


@dataclass(frozen=True)
class RecipeConfig:
    """What all recipes share.

    Attributes:
        model: a name (see recipes/models.py) or package.module:function.
        checkpoint: a dense, pre-trained network as safetensors or weights_only state_dict;
            None trains one first.
        data: what is learned from.
        threat: what the adversary may do.
        objective: the loss, the same in all phases.
        pretraining: by the objective (robust), or benign: then the prune phase looks for a robust
            network hidden in one that is not.
        pretrain: the first phase.
        prune: the second, where scores or rates are learned.
        finetune: the third; 0 epochs leave the weights as they were, where masks are learned.
        evaluation: how the result is measured.
        density: the share of the prunable weights that is kept.
        rates: uniform, erk, lamp or global; for HARP the start.
        structure: weights, or channels: then the network without them is written too.
        budget: params, flops, or channels (in structure channels: the FLOPs of the network that
            keeps that share of every group's channels).
        round_to: keep channels in multiples of it, such as 8 or 16, which hardware prefers.
        exclude: names of layers that stay dense.
        seed: of weights, order and noise.
        precision: of training: fp32, or bf16 by autocast (scores, rates and weights stay float32);
            the finished network is evaluated in fp32.
        accumulate: micro-batches that a process splits its share of a batch into, for less memory.
        channels_last: the memory format of images and convolutions; faster on GPUs with bf16.
        compile: forward passes by torch.compile; pays on GPUs in long runs.
        tracker: where losses and accuracies also go, by accelerate.
        device: cpu, cuda, cuda:1...; auto takes cuda where there is one, under torchrun each
            process its own.
        threads: of torch on the CPU; small networks are fastest with 1. None leaves it alone.
    """

    model: str = "digits-cnn"
    checkpoint: Path | None = None
    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatConfig = field(default_factory=ThreatConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    pretraining: Literal["robust", "benign"] = "robust"
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(ramp=0.6))
    prune: StageConfig = field(default_factory=lambda: StageConfig(epochs=20, select="last"))
    finetune: StageConfig = field(default_factory=lambda: StageConfig(lr=0.01))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    density: float = 0.1
    rates: Literal["uniform", "erk", "lamp", "global"] = "uniform"
    structure: Literal["weights", "channels"] = "weights"
    budget: Literal["params", "flops", "channels"] = "params"
    round_to: int = 1
    exclude: tuple[str, ...] = ()
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    channels_last: bool = False
    compile: bool = False
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    device: str = "auto"
    threads: int | None = None
