"""Presets: YAML files of settings in ``recipes/configs``.

A preset may extend another file. A preset's name may have suffixes, each of which changes a few
settings: ``hydra/digits-erk`` is the file ``hydra/digits.yaml`` and the suffix ``-erk``.
``variants.yaml`` defines the suffixes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robust_plugin.recipes.runtime.did_you_mean import did_you_mean, nearest

CONFIGS = Path(__file__).parents[1] / "configs"
_VARIANTS = Path(__file__).parent / "variants.yaml"
# The keys of a preset file that are not settings.
_EXTENDS, _ABOUT = "extends", "about"


@dataclass(frozen=True)
class Variant:
    """A suffix that the names of presets may have, such as ``-erk``.

    Attributes:
        name: the suffix without its hyphen.
        axis: what the suffix decides, such as rates; a preset's name may have only one suffix with
            the same axis.
        about: description in a few words.
        commands: commands whose presets may have the suffix.
        settings: settings that replace those of the preset; a section may name only some of its
            settings.
    """

    name: str
    axis: str
    about: str
    commands: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """Settings from one source, a file or a suffix of a preset's name.

    A preset consists of several layers; a later layer replaces the settings of the layers before
    it.

    Attributes:
        where: path of the file, or the suffix; error messages begin with it.
        settings: the settings as nested mappings; a section may leave settings out.
        about: one-line description from the source; empty if it has none.
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
    """Return all suffixes that the names of presets may have, by name without the hyphen."""
    return {
        name: Variant(name, axis, each["about"], tuple(each["commands"]), each["settings"])
        for axis, names in yaml.safe_load(_VARIANTS.read_text()).items()
        for name, each in names.items()
    }


def preset_layers(name: str | Path) -> tuple[Layer, ...]:
    """Return the settings of a preset as layers; each replaces settings of those before it.

    The layers are those of the file that the preset extends, if any, then the preset's own file,
    then its suffixes: ``harp/cifar10-vgg16-mart-channels`` is the file ``harp/cifar10-vgg16.yaml``
    and the suffixes ``-mart`` and ``-channels``.

    Args:
        name: name of a preset, with or without suffixes, or a path to a YAML file.

    Raises:
        ValueError: for an unknown preset or suffix, two suffixes that decide the same thing (such
            as ``-erk`` and ``-lamp``, which both choose the rates), a file that is no YAML mapping,
            or files that extend one another in a circle.
    """
    return _layers(str(name), beside=None, above=())


def _layers(name: str, *, beside: Path | None, above: tuple[Path, ...]) -> tuple[Layer, ...]:
    path, suffixes = _located(name, beside)
    if path in above:
        chain = " -> ".join(str(each) for each in (*above[above.index(path) :], path))
        raise ValueError(f"presets extend one another in a circle: {chain}.")
    content = _content(path)
    settings = {key: value for key, value in content.items() if key not in (_EXTENDS, _ABOUT)}
    below: tuple[Layer, ...] = ()
    if _EXTENDS in content:
        below = _layers(str(content[_EXTENDS]), beside=path, above=(*above, path))
    own = Layer(str(path), settings, str(content.get(_ABOUT, "")))
    return (*below, own, *(Layer(f"-{each.name}", each.settings, each.about) for each in suffixes))


def _located(name: str, beside: Path | None) -> tuple[Path, tuple[Variant, ...]]:
    """Return the path of the file that a preset's name stands for, and the suffixes of the name.

    Args:
        name: name of a preset, with or without suffixes, or a path to a YAML file.
        beside: path of the file that extends ``name``; a path is first looked for in the folder of
            this file. None if no file extends it.
    """
    if (found := _split(name)) is not None:
        _check_axes(name, found[1])
        return found
    for folder in [Path()] if beside is None else [beside.parent, Path()]:
        if (path := folder / name).is_file():
            return path, ()
    extended = "" if beside is None else f", which {beside} extends"
    meant = did_you_mean(nearest(name, _names_near(name), n=3))
    raise ValueError(
        f"there is no preset or file {name}{extended}{meant}; robust-plugin list shows the presets "
        "and the suffixes of their names."
    )


def _split(name: str) -> tuple[Path, tuple[Variant, ...]] | None:
    """Return the file that a name begins with, and its suffixes; None if there is no such file."""
    suffixes: tuple[Variant, ...] = ()
    while not (path := CONFIGS / f"{name}.yaml").is_file():
        name, hyphen, last = name.rpartition("-")
        if not hyphen or last not in variants():
            return None
        suffixes = (variants()[last], *suffixes)
    return path, suffixes


def _names_near(name: str) -> list[str]:
    """Return all names of presets, and ``name`` with any suffix in place of a wrong last one."""
    names = preset_names()
    head = name.rpartition("-")[0]
    if head and _split(head) is not None:
        command = name.partition("/")[0]
        names += [f"{head}-{v.name}" for v in variants().values() if command in v.commands]
    return names


def _check_axes(name: str, suffixes: Iterable[Variant]) -> None:
    """Raise a ValueError if two suffixes of a name decide the same thing."""
    seen: dict[str, Variant] = {}
    for each in suffixes:
        if each.axis in seen:
            raise ValueError(
                f"{name}: -{seen[each.axis].name} and -{each.name} both choose the {each.axis}; "
                "give one of them."
            )
        seen[each.axis] = each


def _content(path: Path) -> Mapping[str, Any]:
    """Return all keys of a YAML file: the settings, and ``extends`` and ``about`` if given."""
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
