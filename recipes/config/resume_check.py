"""Which settings the trained weights of a run depend on.

A run writes these settings into its checkpoints. It continues from a checkpoint only if its own
settings are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_plugin.recipes.config.read import as_plain
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.runtime.weight_files import check_file

# Settings that are not part of a run's identity. Some do not change the trained weights, except by
# rounding and, for micro-batches, by BatchNorm, which sees smaller batches. The others are compared
# elsewhere: each stage writes its own settings into its checkpoints, and a given checkpoint is
# compared by its content.
_NOT_IDENTITY = (
    *("checkpoint", "pretrain", "prune", "finetune", "evaluation", "device", "threads"),
    *("accumulate", "channels_last", "compile", "tracker"),
)


_NOT_IDENTITY_OF_DATA = ("workers", "download")


_CONTENT = "data.content"  # the digest of the data, as ``identity_of`` stores it


# Settings that older runs do not have, with the values that those runs were trained with.
_LATER = {
    "round_to": 1,
    "pretraining": "robust",
    "precision": "fp32",
    "data.extra": None,
    "data.extra_share": 0.5,
    "data.colour": "auto",
    "data.background": "refuse",
    "objective.ramp": "linear",
    "regularizers.distill": 0.0,
    "regularizers.average": 0.0,
    "regularizers.weight_perturbation": 0.0,
    "regularizers.score_perturbation": 0.0,
    "schedule": "at_once",
    "shrink": 0.5,
}


def identity_of(config: RecipeConfig, *, content: str = "") -> dict[str, Any]:
    """Return those settings of a run that the weights of all its training stages depend on.

    The given checkpoint is represented by the SHA-256 of its content.

    Args:
        config: all settings of the run.
        content: digest of what the files of the data set hold; empty if there is none.

    Returns:
        dict: the settings as plain values by name, and the name of the settings' class as "recipe".

    Raises:
        ValueError: if the checkpoint does not exist or holds no weights.
    """
    plain = as_plain(config)
    kept = {name: value for name, value in plain.items() if name not in _NOT_IDENTITY}
    for name in _NOT_IDENTITY_OF_DATA:
        del kept["data"][name]
    if content:
        kept["data"]["content"] = content
    identity = {"recipe": type(config).__name__, **kept}
    if config.checkpoint is not None:
        check_file(config.checkpoint)
        identity["checkpoint"] = hashlib.sha256(config.checkpoint.read_bytes()).hexdigest()
    return identity


def refuse_other_settings(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise a ValueError that names the first setting that has changed since a run began.

    Args:
        saved: settings in the run's checkpoint, as ``identity_of`` returned them.
        now: settings of the run that would continue, from the same function.
        folder: folder of the run, for the message.
    """
    before, after = _LATER | _flat(saved), _LATER | _flat(now)
    # Older runs have these settings in their identity.
    ignored = {_CONTENT, *(f"data.{name}" for name in _NOT_IDENTITY_OF_DATA)}
    for key in [*before, *after]:
        if key not in ignored and before.get(key) != after.get(key):
            raise ValueError(
                f"{folder} holds a run with other settings: {key} was {before.get(key)!r} and is "
                f"now {after.get(key)!r}. Give another --out, or delete the folder."
            )
    digests = before.get(_CONTENT), after.get(_CONTENT)  # older runs have none
    if None not in digests and digests[0] != digests[1]:
        raise ValueError(
            f"{folder} holds a run on other images: the files, labels or points of the data set "
            "have changed since it began. Give another --out, or delete the folder."
        )


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping, from paths such as ``data.name`` to values."""
    if not isinstance(settings, Mapping):
        return {prefix: settings}
    return {
        key: value
        for name, each in settings.items()
        for key, value in _flat(each, f"{prefix}.{name}" if prefix else name).items()
    }
