"""Data that a function of the user returns, named as ``package.module:function``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from robust_plugin.recipes.data.image_parts import VALIDATION
from robust_plugin.recipes.data.own_parts import PART, OwnPart, OwnPoints, OwnTensors
from robust_plugin.recipes.data.splits import hold_out
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.runtime.own_code import call

_KEYS = ("train", "validation", "test", "class_names")


def own_data(
    name: str, validation: float | None, *, seed: int, augmentation: str = "none", **offered: Any
) -> Data:
    """Load the data that a function of the user returns.

    The function is called without arguments, or with ``folder`` if it has this parameter. It
    returns (train, test), or a mapping with the keys "train" and "test" and, if wanted,
    "validation" and "class_names". Each part is one of these:

    - A pair (x, y) of tensors or arrays: x of shape [N, C, H, W], uint8 or floats in [0, 1]; y of
      shape [N], integers. They are kept in memory.
    - A data set with a length, whose points are pairs (x, y): x a tensor of shape [C, H, W], uint8
      or floats in [0, 1], or an image of Pillow; y an integer. Its points are read at each use, and
      ``workers`` processes may read them. If it has an attribute ``targets`` with the labels, as
      torchvision's data sets have, only some of its points are looked at before training, otherwise
      all of them. It may augment its points by torch's random numbers, but not if validation points
      are taken from it.

    Labels are 0, 1, ... The names of the classes are "class_names", or else the attribute
    ``classes`` of the training data set, or else the labels.

    Args:
        name: where the function is, as "package.module:function".
        validation: share of the training points to hold out, in (0, 1); None for 0.1. It must be
            None if the function returns validation points.
        seed: seed of the choice of the validation points.
        augmentation: random changes of the training points, one of ``images.AUGMENTATIONS``.
        **offered: arguments of the function, which gets those that it has parameters for.

    Raises:
        ValueError: if the function cannot be imported or fails, or for points, labels or names that
            are not as above.
        TypeError: if it returns other objects.
    """
    given = _as_mapping(call(name, what="data", offered=offered), name)
    names = given.pop("class_names", None)
    names = getattr(given["train"], "classes", None) if names is None else names
    parts = {part: _part(points, f"{part} of {name}") for part, points in given.items()}
    shapes = {part: points.shape for part, points in parts.items()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
        raise ValueError(f"data {name!r} has points of several shapes: {said}; legal: one shape.")
    class_names = _class_names(parts, names, name)
    train, held = parts["train"], parts.get("validation")
    kept: Sequence[int] = range(len(train.targets))
    if held is None:
        share = VALIDATION if validation is None else validation
        kept, out = hold_out(train.targets, share, seed=seed)
        checked = train.chosen(out)
    elif validation is None:
        checked = held.chosen(range(len(held.targets)))
    else:
        raise ValueError(
            f"validation={validation!r}, but data {name!r} has validation points of its own; leave "
            "--data.validation out."
        )
    digest = hashlib.sha256()
    for part, points in parts.items():
        digest.update(part.encode() + points.content())
    return Data(
        name,
        train=train.chosen(kept, augmentation),
        validation=checked,
        test=parts["test"].chosen(range(len(parts["test"].targets))),
        classes=len(class_names),
        shape=train.shape,
        class_names=class_names,
        content=digest.hexdigest()[:16],
    )


def _as_mapping(found: Any, name: str) -> dict[str, Any]:
    """Return what the function has returned by the names of the parts."""
    legal = f"(train, test), or a mapping with the keys {', '.join(_KEYS)}; each part is {PART}"
    if isinstance(found, Mapping):
        odd = [str(key) for key in found if key not in _KEYS]
        missing = [key for key in ("train", "test") if key not in found]
        if odd or missing:
            keys = ", ".join(map(str, found))
            raise ValueError(f"data {name!r} returned the keys {keys}; legal: {legal}.")
        return {key: found[key] for key in _KEYS if key in found}  # in the same order each time
    # A tensor of two images can be unpacked too, so only tuples and lists are.
    if isinstance(found, tuple | list) and len(found) == 2 and not hasattr(found[0], "dtype"):
        return {"train": found[0], "test": found[1]}
    length = f" of {len(found)}" if isinstance(found, tuple | list) else ""
    what = f"{type(found).__name__}{length}"
    if isinstance(found, tuple | list):
        what += f" ({', '.join(type(each).__name__ for each in found[:4])})"
    raise TypeError(f"data {name!r} returned a {what}; legal: {legal}.")


def _part(points: Any, name: str) -> OwnPart:
    """Return one part of the data, after a check."""
    if isinstance(points, tuple | list) and len(points) == 2 and hasattr(points[0], "shape"):
        return OwnTensors(points[0], points[1], name)
    if hasattr(points, "__len__") and hasattr(points, "__getitem__"):
        return OwnPoints(points, name)
    raise TypeError(f"{name} is a {type(points).__name__}; legal: {PART}.")


def _class_names(parts: Mapping[str, OwnPart], names: Any, name: str) -> tuple[str, ...]:
    """Return the names of the classes, after a check of all labels.

    Args:
        parts: the parts of the data.
        names: names that the user gives; None gives none.
        name: where the function is, for messages.
    """
    trained = set(parts["train"].targets)
    largest = max(max(points.targets) for points in parts.values())
    if names is not None:
        if isinstance(names, str) or len(names) <= largest:
            raise ValueError(
                f"data {name!r} has labels up to {largest} and the class names {names!r}; legal: "
                f"one name for each class, so at least {largest + 1}."
            )
        return tuple(map(str, names))
    if missing := [label for label in range(largest + 1) if label not in trained]:
        raise ValueError(
            f"data {name!r} has labels up to {largest}, but no training point with label "
            f"{missing[0]}; number the classes 0, 1, ... without gaps, or return class_names too."
        )
    return tuple(str(label) for label in range(largest + 1))
