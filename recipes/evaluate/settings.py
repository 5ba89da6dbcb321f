"""The settings of an evaluation: given, those of a finished run, and those that nothing reads."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from robust_plugin.recipes.certificates import CertifierName
from robust_plugin.recipes.config import DataConfig, RecipeConfig, ThreatConfig, build
from robust_plugin.recipes.weights import dense_weights


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


def of_run(folder: Path) -> EvaluateConfig:
    """Return the settings that evaluate a finished run as its report did.

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
    """Raise a ValueError for options of an evaluation that nothing would read.

    Args:
        config: the settings.
        before: those without the options.
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
