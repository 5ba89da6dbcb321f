"""Presets: YAML files of settings, what they extend, and what the endings of a name change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[1] / "configs"
_VARIANTS = Path(__file__).parent / "variants.yaml"
# Of a preset's keys, those that are no settings.
_EXTENDS, _ABOUT = "extends", "about"


@dataclass(frozen=True)
class Variant:
    """What an ending of a preset's name changes.

    Attributes:
        name: the ending, without its hyphen.
        axis: what it decides; a name has one ending of each axis.
        about: in a few words.
        commands: whose presets take it.
        settings: laid over those of the preset.
    """

    name: str
    axis: str
    about: str
    commands: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """Settings of one file, to be laid over those of the layers before it.

    Attributes:
        where: what an error calls the place.
        settings: as the file has them; sections may be partial.
        about: what the file says about itself in one line, or nothing.
    """

    where: str
    settings: Mapping[str, Any]
    about: str = ""


def preset_names() -> list[str]:
    """Return the names of all preset files, sorted."""
    files = CONFIGS.rglob("*.yaml")
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in files)


@lru_cache
def variants() -> Mapping[str, Variant]:
    """Return the endings that a preset's name may have, by name."""
    return {
        name: Variant(name, axis, each["about"], tuple(each["commands"]), each["settings"])
        for axis, names in yaml.safe_load(_VARIANTS.read_text()).items()
        for name, each in names.items()
    }


def preset_layers(name: str | Path) -> tuple[Layer, ...]:
    """Return a preset's settings as layers, each to be laid over the one before.

    A preset begins with what it extends, if anything. A name that is no file is one with endings:
    ``harp/cifar10-vgg16-mart-channels`` is ``harp/cifar10-vgg16`` and two variants.

    Args:
        name: a preset, with or without endings, or a path to a file of one's own.

    Raises:
        ValueError: for an unknown preset or ending, two endings of one axis, a file that is no
            YAML mapping, or files that extend one another in a circle.
    """
    return _layers(str(name), beside=None, above=())


def _layers(name: str, *, beside: Path | None, above: tuple[Path, ...]) -> tuple[Layer, ...]:
    path, endings = _located(name, beside)
    if path in above:
        chain = " -> ".join(str(each) for each in (*above[above.index(path) :], path))
        raise ValueError(f"presets extend one another in a circle: {chain}.")
    content = _content(path)
    settings = {key: value for key, value in content.items() if key not in (_EXTENDS, _ABOUT)}
    below: tuple[Layer, ...] = ()
    if _EXTENDS in content:
        below = _layers(str(content[_EXTENDS]), beside=path, above=(*above, path))
    own = Layer(str(path), settings, str(content.get(_ABOUT, "")))
    return (*below, own, *(Layer(f"-{each.name}", each.settings, each.about) for each in endings))


def _located(name: str, beside: Path | None) -> tuple[Path, tuple[Variant, ...]]:
    """Return the file of a name, and the variants that its endings are."""
    base, endings = name, list[Variant]()
    while True:
        if (path := CONFIGS / f"{base}.yaml").is_file():
            _check_axes(name, endings)
            return path, tuple(endings)
        shorter, hyphen, last = base.rpartition("-")
        if not hyphen or last not in variants():
            break
        base, endings = shorter, [variants()[last], *endings]
    for folder in [Path()] if beside is None else [beside.parent, Path()]:
        if (path := folder / name).is_file():
            return path, ()
    near = difflib.get_close_matches(name, preset_names(), n=3, cutoff=0.4)
    such_as = f", such as {', '.join(near)}" if near else ""
    extended = "" if beside is None else f", which {beside} extends"
    raise ValueError(
        f"there is no preset or file {name}{extended}; robust-plugin list shows the presets and "
        f"the endings of their names{such_as}."
    )


def _check_axes(name: str, endings: Iterable[Variant]) -> None:
    seen: dict[str, Variant] = {}
    for each in endings:
        if each.axis in seen:
            raise ValueError(
                f"{name}: -{seen[each.axis].name} and -{each.name} both choose the {each.axis}; "
                "give one of them."
            )
        seen[each.axis] = each


def _content(path: Path) -> Mapping[str, Any]:
    try:
        content = _parsed(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise ValueError(f"{path} is empty; it would change no setting.")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: {content!r} is no mapping of settings.")
    return content


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)
