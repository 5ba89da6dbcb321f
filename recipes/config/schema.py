"""The settings of a recipe, as frozen dataclasses.

Each attribute is a key of the YAML presets and an option of the command line, and its description
here is what ``--help`` prints. The settings of the loss are in ``objective.py``. Settings that only
one recipe has are beside it in ``recipes/papers``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robust_plugin.recipes.config.objective import ObjectiveConfig
from robust_plugin.threat.model import Norm, ThreatModel


@dataclass(frozen=True)
class DataConfig:
    """The data set, and how it is split, augmented and loaded.

    Attributes:
        name: data set: digits (scikit-learn's 8x8 images, nothing to download), folder (your own
            image folder), cifar10, cifar100 or svhn.
        folder: folder that holds the files of the data set. A folder of images needs
            train/<class>/ and test/<class>/ (or val/<class>/); cifar10, cifar100 and svhn need the
            files as torchvision stores them; digits needs no folder.
        validation: share of the training points that is held out to choose models, in (0, 1);
            None for the data set's own default (0.1; for digits 200 points).
        image_size: size in pixels that images are resized and cropped to, only for the data set
            folder. None keeps their size, or is 224 with the augmentation resized-crop+flip.
        augmentation: random changes of the training images: none, crop, flip or crop+flip; with the
            data set folder also resized-crop+flip, as for ImageNet. None for the data set's own
            default (crop+flip for cifar10 and cifar100, crop for svhn, otherwise none).
        test: number of test points, only for the data set digits; None for 400 of its 1797 points.
        extra: file or folder with additional training images, such as pseudo-labelled ones: an .npz
            with images and labels, or a folder with images.npy and labels.npy. None adds none.
        extra_share: share of each training batch that is taken from the additional images of
            data.extra, in (0, 1). An epoch is still one pass over the data set's own images.
        batch_size: number of training points per optimizer step, over all processes and
            micro-batches.
        workers: number of loader processes that each training process starts to read images; 0
            reads them in the training process itself.
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
    """The threat model: all x' with ||x' - x|| <= eps and values in [0, 1].

    Attributes:
        norm: norm that measures a change of the input: Linf or L2. Only AutoAttack also supports
            L1.
        eps: largest norm of a change of the input, where pixels are in [0, 1]: a number or a
            fraction such as 8/255.
    """

    norm: Norm = "Linf"
    eps: str = "8/255"

    def build(self) -> ThreatModel:
        """Return the threat model."""
        return ThreatModel(self.norm, self.eps)


@dataclass(frozen=True)
class StageConfig:
    """One phase of training. The learning rate falls to nearly zero along a cosine, step by step.

    Attributes:
        epochs: number of epochs of this training phase; an epoch is one pass over the training
            points.
        lr: learning rate at the first step of this training phase.
        optimizer: optimizer of this training phase: sgd (without Nesterov momentum) or adam.
        momentum: momentum of the optimizer sgd in this training phase, at least 0 and below 1.
        weight_decay: weight decay in this training phase, for all trained parameters except scores
            and rates.
        decay_scores: apply the weight decay to scores and rates too, as the papers' code does. It
            pulls every rate towards one half.
        select: weights that this training phase ends with: last for those of its last epoch, best
            for those of the epoch with the best robust accuracy on the validation points.
        ramp: share of this training phase's epochs, 0 to 1, over which eps and the loss weights
            grow to their full values in the losses certified, mixtrain and smoothadv. 0 uses the
            full values from the first step, which suits a network that already had a ramp.
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
    """How the finished network is measured, on test points that nothing else has used.

    Attributes:
        steps: number of gradient steps per start of the PGD attack on the test points.
        restarts: number of random starts of the PGD attack on the test points.
        autoattack: number of test points that AutoAttack attacks, counted from the first; 0 to skip
            AutoAttack.
        version: version of AutoAttack: standard, plus (with more attacks), rand (for networks that
            use random numbers), or screen (faster: apgd-ce and apgd-t only, as the report says).
        verify: number of test points to prove robust, counted from the first; 0 to skip proofs.
        certify: method that proves test points robust: ibp, crown-ibp (for networks whose inner
            layers are too large for CROWN), cascade (IBP, CROWN, alpha-CROWN), or cascade-fixed,
            which leaves out alpha-CROWN on all slopes.
        seconds: time limit per point for a cascade of proofs, in seconds; a point that is not
            decided in time counts as unknown. None for no limit.
        smooth: number of test points that randomized smoothing certifies, counted from the first,
            with the noise of objective.sigma; 0 to skip it.
        votes: number of noisy copies of each point that vote when randomized smoothing certifies
            it.
        batch_size: number of test points per batch.
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
    """The settings that all recipes share.

    Attributes:
        model: network to train: a built-in name such as digits-cnn, resnet18 or wrn-28-4, or
            package.module:function for your own (the function returns an nn.Module).
        checkpoint: file with the weights of a dense, pre-trained network, as safetensors or as a
            state_dict that torch.load reads with weights_only=True; it replaces the phase pretrain.
            None trains the dense network first.
        data: the data set, and how it is split, augmented and loaded.
        threat: the threat model: what an attack may change.
        objective: the training loss, the same one in the phases pretrain, prune and finetune.
        pretraining: loss of the phase pretrain: robust (the objective), or benign (cross-entropy
            without attacks), to look for a robust sub-network in a network that is not robust.
        pretrain: the first phase, which trains the dense network.
        prune: the second phase, which learns scores or rates while the weights are frozen. Pruning
            by magnitude takes only its number of epochs, and fine-tunes that much longer.
        finetune: the third phase, which trains the weights that are kept. In the recipes that learn
            scores or rates, 0 epochs skip it.
        evaluation: measurements of the finished network on the test points.
        density: share of the prunable weights that is kept, above 0 and at most 1; the setting
            budget can make it a share of FLOPs or channels instead.
        rates: method that sets each layer's rate, the share of its weights that is kept: uniform
            for the same rate everywhere, erk for rates by the shapes of the layers, lamp for rates
            by the magnitudes of the weights, or global for one threshold over all layers. HARP
            starts from these rates and learns them.
        structure: part of the network that is pruned: single weights, or whole channels. With
            channels, a smaller network without the removed channels is written too.
        budget: quantity that density is a share of: params (number of weights), flops, or channels.
            The budget channels needs the structure channels; it is the FLOPs of the network that
            keeps this share of the channels in every group.
        round_to: number of which the kept channels per layer are a multiple, such as 8 or 16, which
            hardware computes faster; 1 allows any number. Only for the structure channels.
        exclude: names of layers that are not pruned.
        seed: seed of the random numbers: initial weights, order of the training points and noise.
        precision: number format of training: fp32, or bf16 by autocast (scores, rates and weights
            stay float32). The finished network is evaluated in fp32.
        accumulate: number of micro-batches that each process splits its share of a batch into;
            more need less memory.
        channels_last: store images and convolutions in PyTorch's channels_last memory format, which
            is faster on GPUs with bf16.
        compile: compile the network with torch.compile; worth its start-up time in long runs on
            GPUs.
        tracker: experiment tracker that losses and accuracies are also sent to, by the library
            accelerate; none sends them nowhere.
        device: device to compute on: cpu, cuda, cuda:1, ... With auto it is a GPU if there is one;
            under torchrun each process takes a GPU of its own.
        threads: number of CPU threads torch may use; None for torch's own choice. Small networks
            are fastest with 1.
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
