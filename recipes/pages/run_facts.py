"""The facts that the page of a run shows, as plain values.

``evaluate/run_facts.py`` gathers them from the folder of a run; ``run_page.py`` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robust_plugin.evaluation.comparison import Comparison
from robust_plugin.evaluation.report import Report
from robust_plugin.recipes.pages.security_curve import CurveUnderPGD


@dataclass(frozen=True)
class Network:
    """Size, cost, latency and accuracy of one network.

    Attributes:
        parameters: number of parameters; in a network with pruned weights, those that are not zero.
        multiply_adds: number of multiply-adds of a forward pass on one example, without those of
            pruned weights.
        bytes: size of the network's file in bytes.
        milliseconds: median time of a forward pass on this machine, by batch size.
        report: clean accuracy, and robust accuracy under PGD, on the test points.
    """

    parameters: int
    multiply_adds: int
    bytes: int
    milliseconds: Mapping[int, float]
    report: Report


@dataclass(frozen=True)
class Epoch:
    """One epoch of training.

    Attributes:
        stage: name of the stage, such as ``"prune"``.
        loss: mean training loss.
        clean: clean accuracy on the validation points, in [0, 1].
        robust: robust (or certified) accuracy on the validation points, in [0, 1].
        density: share of the budget that is used, in [0, 1].
        densities: share that each layer keeps, by its name; empty for a dense network, and for runs
            of versions that did not record it.
    """

    stage: str
    loss: float
    clean: float
    robust: float
    density: float
    densities: Mapping[str, float]


@dataclass(frozen=True)
class Layer:
    """How much of one layer (or group of channels) is left.

    Attributes:
        name: name of the weight or of the channel group.
        kept: number of its weights or channels that are kept.
        size: number of its weights or channels before pruning.
    """

    name: str
    kept: int
    size: int


@dataclass(frozen=True)
class Mask:
    """Which weights of one layer are left.

    Attributes:
        name: name of the weight.
        kept: whether each weight is not zero; bool, in the shape of the weight.
    """

    name: str
    kept: Tensor


@dataclass(frozen=True)
class Example:
    """One test point, without and with the attack.

    Attributes:
        point: index of the point in the test set.
        label: its class.
        clean: the image, shape [C, H, W], values in [0, 1].
        adversarial: the attacked image, of the same shape.
        predictions: predicted class of the clean and of the adversarial image.
        confidences: probability that the network gives to each of these classes, in [0, 1].
    """

    point: int
    label: int
    clean: Tensor
    adversarial: Tensor
    predictions: tuple[int, int]
    confidences: tuple[float, float]


@dataclass(frozen=True)
class UnderAttack:
    """Predictions of the network for the first test points.

    Attributes:
        attack: name of the attack.
        labels: class of each point.
        clean: predicted class of each clean point.
        adversarial: predicted class of each adversarial point.
    """

    attack: str
    labels: tuple[int, ...]
    clean: tuple[int, ...]
    adversarial: tuple[int, ...]


@dataclass(frozen=True)
class RunFacts:
    """Everything that the page of one run shows.

    Attributes:
        method: name of the recipe, such as ``"harp"``.
        model: name of the network.
        data: name of the data set.
        objective: name of the training loss.
        threat: the threat model in words.
        structure: what is pruned: ``"weights"`` or ``"channels"``.
        density: share of the budget that the network may use, in (0, 1].
        budget: quantity that the budget counts: ``"params"``, ``"flops"`` or ``"channels"``.
        validation: how robust accuracy on the validation points is measured, such as ``"PGD-10"``.
        report: evaluation of the pruned network on the test points.
        dense: the dense network; None if its weights are not there any more.
        pruned: the pruned network on the points of ``dense``; None if that is.
        comparisons: the pruned network against the dense one, by each accuracy of ``dense``.
        curves: security curves of the dense network and of the pruned one, by ``"dense"`` and
            ``method``; empty for runs of versions that did not measure them.
        epochs: all epochs in the order of training.
        layers: how much of each layer is left.
        masks: masks of a few chosen layers.
        examples: test points without and with the attack; empty if the inputs are not images.
        attacked: predictions under the attack; None for runs of versions that did not store them.
        class_names: name of each class.
        findings: sentences about what is wrong with the training or with the evaluation.
        smoothing: table of certified accuracy by randomized smoothing; empty without it.
        device: device and number of CPU threads on which the latency was measured, in words.
        command: command line that trained the network.
        settings: all settings, as plain values.
        versions: version of each library, by its name.
    """

    method: str
    model: str
    data: str
    objective: str
    threat: str
    structure: str
    density: float
    budget: str
    validation: str
    report: Report
    dense: Network | None
    pruned: Network | None
    comparisons: tuple[Comparison, ...]
    curves: Mapping[str, CurveUnderPGD]
    epochs: tuple[Epoch, ...]
    layers: tuple[Layer, ...]
    masks: tuple[Mask, ...]
    examples: tuple[Example, ...]
    attacked: UnderAttack | None
    class_names: tuple[str, ...]
    findings: tuple[str, ...]
    smoothing: str
    device: str
    command: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
