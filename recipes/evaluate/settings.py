"""Settings of ``evaluate``: those of a finished run, and the check for options without effect."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.training.run import dense_weights


def of_run(folder: Path) -> EvaluateConfig:
    """Return settings of ``evaluate`` that measure a finished run again as for its own report.

    Args:
        folder: the run's folder.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    settings, weights = folder / "config.json", folder / "model.safetensors"
    if not (settings.is_file() and weights.is_file()):
        raise ValueError(
            f"{folder} holds no finished run: config.json and model.safetensors are expected."
        )
    try:
        content = json.loads(settings.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{settings} is no JSON: {error}") from error
    names = [field.name for field in dataclasses.fields(RecipeConfig)]
    base = build(
        RecipeConfig,
        {name: content[name] for name in names if name in content},
        where=str(settings),
    )
    return EvaluateConfig(
        base.model,
        weights,
        base.data,
        base.threat,
        steps=base.evaluation.steps,
        restarts=base.evaluation.restarts,
        seed=base.seed,
        batch_size=base.evaluation.batch_size,
        device=base.device,
        threads=base.threads,
        small=small if (small := folder / "small.safetensors").is_file() else None,
        parent=parent if (parent := dense_weights(folder, base)).is_file() else None,
    )


def check_options(config: EvaluateConfig, before: EvaluateConfig) -> None:
    """Raise a ValueError for an option that no chosen attack, certifier or check uses.

    Args:
        config: the settings with the options of the command line.
        before: the settings without these options.
    """
    journals = any(name.startswith(("autoattack", "screen")) for name in config.attacks)
    journals = journals or config.certify.startswith("cascade")
    attacks = f"attacks is {', '.join(config.attacks) or 'none'}"
    for name, used, reader, found in (
        ("steps", "pgd" in config.attacks, "pgd takes steps", attacks),
        ("restarts", "pgd" in config.attacks, "pgd takes restarts", attacks),
        ("radii", "fab" in config.attacks, "the security curve by fab has radii", attacks),
        (
            "journal",
            journals,
            "AutoAttack and cascades of proofs write a journal",
            f"{attacks}, certify is {config.certify}",
        ),
        ("parent", config.checks > 0, "the checks attack a parent", "checks is 0"),
    ):
        if not used and (value := getattr(config, name)) != getattr(before, name):
            shown = ", ".join(value) if isinstance(value, tuple) else value
            raise ValueError(
                f"{name} is {shown}, but only {reader}, and {found}; leave {name} out, or ask for "
                "what reads it."
            )
