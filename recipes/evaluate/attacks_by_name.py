"""Attacks of the command ``evaluate`` by their names on the command line."""

from __future__ import annotations

from pathlib import Path

from robust_plugin.adapters.autoattack import AutoAttack, Version
from robust_plugin.adapters.torchattacks import torchattack
from robust_plugin.attacks.contract import Attack
from robust_plugin.attacks.minimum_norm import MinimumNorm
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.evaluate.measure import strongest_pgd
from robust_plugin.threat.model import ThreatModel

# AutoAttack's versions by their names on the command line.
_VERSIONS: dict[str, Version] = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    "autoattack-rand": "rand",
    "screen": "screen",
}


def attack_by_name(name: str, config: EvaluateConfig, threat: ThreatModel) -> Attack:
    """Return an attack by its name on the command line.

    Args:
        name: ``"pgd"``; ``"autoattack"``, ``"autoattack-plus"``, ``"autoattack-rand"`` or
            ``"screen"``, which are versions of AutoAttack; ``"fab"``; or ``"torchattacks.NAME"``.
        config: settings of the evaluation; used are PGD's steps and restarts, the batch size, the
            seed and the journal.
        threat: norm, eps and bounds of the inputs.

    Raises:
        ValueError: for an unknown name, or an attack that does not support the threat model.
    """
    if name == "pgd":
        return strongest_pgd(threat, steps=config.steps, restarts=config.restarts)
    if name in _VERSIONS:
        return AutoAttack(
            threat,
            version=_VERSIONS[name],
            seed=config.seed,
            batch_size=config.batch_size,
            journal=journal_of(config, name),
        )
    if name == "fab":
        return MinimumNorm(threat)
    library, _, kind = name.partition(".")
    if library == "torchattacks" and kind:
        return torchattack(kind, threat, seed=config.seed)
    legal = ", ".join(["pgd", *_VERSIONS, "fab", "torchattacks.NAME"])
    raise ValueError(f"attack is {name!r}; legal: {legal}.")


def journal_of(config: EvaluateConfig, name: str) -> Path | None:
    """Return the folder for the finished batches of an attack or certifier; None to keep nothing.

    An interrupted evaluation continues from these batches.

    Args:
        config: settings of the evaluation; ``journal`` is used.
        name: name of the attack or certifier.
    """
    return None if config.journal is None else config.journal / name
