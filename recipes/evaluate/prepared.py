"""What an evaluation works on: the network, the test points, attacks and certifier.

``prepared`` loads them and refuses everything that could not work, before any time is spent.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.attacks.contract import Attack
from robust_plugin.certificates.contract import Certifier
from robust_plugin.evaluation.curve import around
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.data.load import check_folder, data_of
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.evaluate.attacks_by_name import attack_by_name, journal_of
from robust_plugin.recipes.evaluate.certifiers import certifier_of
from robust_plugin.recipes.evaluate.settings import check_options
from robust_plugin.recipes.models.registry import build_model, check_takes, example_of
from robust_plugin.recipes.models.weights import load_weights
from robust_plugin.recipes.runtime.process_group import device_of
from robust_plugin.recipes.training.weights_or_channels import without_channels
from robust_plugin.threat.model import ThreatModel
from robust_plugin.threat.units import parse_eps


@dataclass(frozen=True)
class Prepared:
    """What an evaluation works on.

    Attributes:
        model: network in evaluation mode, on the device of the evaluation.
        data: data set.
        test: the test points to evaluate, pairs (x, y).
        threat: norm, eps and bounds of the inputs.
        radii: radii of the security curve.
    """

    model: nn.Module
    data: Data
    test: Dataset[Any]
    threat: ThreatModel
    radii: tuple[str, ...]


def prepared(config: EvaluateConfig, before: EvaluateConfig | None) -> Prepared:
    """Check the settings of an evaluation, and load its network and data.

    Args:
        config: settings of the evaluation.
        before: the settings without the options of the command line; None checks no options.

    Raises:
        ValueError: for an unknown attack, illegal settings, or a model, checkpoint and data that do
            not fit together.
    """
    _check_numbers(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    threat, device = config.threat.build(), device_of(config.device)
    attacks, _ = methods_of(config, threat)  # wrong names are found now and not after hours
    if before is not None:
        check_options(config, before)
    radii = config.radii or around(threat)
    for radius in radii:
        parse_eps(radius)  # an illegal radius is found now and not after hours
    data = _data(config.data)
    for attack in attacks:
        if isinstance(attack, AutoAttack):
            attack.check_classes(data.classes)  # found now and not after hours
    model = network_of(config, data, config.checkpoint)
    if config.small is not None:
        model = without_channels(config.small, model, data.shape)
    test = data.test
    if config.n is not None:
        if not 0 < config.n <= len(test):  # type: ignore[arg-type]
            raise ValueError(f"n is {config.n}; legal: 1 to {len(test)}.")  # type: ignore[arg-type]
        test = Subset(test, range(config.n))
    return Prepared(model.to(device).eval(), data, test, threat, radii)


def methods_of(
    config: EvaluateConfig, threat: ThreatModel
) -> tuple[list[Attack], Certifier | None]:
    """Return the attacks and the certifier that the settings name; the certifier may be None.

    Args:
        config: settings of the evaluation.
        threat: norm, eps and bounds of the inputs.
    """
    certifier = certifier_of(
        config.certify, threat, seconds=config.seconds, journal=journal_of(config, "proofs")
    )
    return [attack_by_name(name, config, threat) for name in config.attacks], certifier


def _check_numbers(config: EvaluateConfig) -> None:
    """Raise a ValueError for a number of threads, points per batch or checks that is too small."""
    for name, value, least in (
        ("threads", config.threads, 1),
        ("batch_size", config.batch_size, 1),
        ("checks", config.checks, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; legal: {least} or more.")


def _data(config: DataConfig) -> Data:
    """Load the data set of an evaluation, without extra training points."""
    check_folder(config)
    return data_of(dataclasses.replace(config, extra=None))


def network_of(config: EvaluateConfig, data: Data, weights: Path) -> nn.Module:
    """Build the model of an evaluation and load weights from a file into it.

    Raises:
        ValueError: if the weights do not fit the model, or the model does not fit the data.
    """
    model = build_model(config.model, classes=data.classes, shape=data.shape)
    load_weights(model, weights)
    check_takes(model, config.model, example_of(data.shape), data.classes)
    return model


def refuse_folder(folder: Path) -> None:
    """Raise a ValueError if the folder for the reports is a file or the folder of a run."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give --out a folder, or a name in .json.")
    if (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is a run's own folder, whose report would be lost; give --out another, "
            f"such as {folder / 'evaluation'}."
        )
