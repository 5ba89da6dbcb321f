"""Configurations: frozen dataclasses, YAML presets, and the command line over both."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from robust_plugin.recipes.config.presets import preset_layers

T = TypeVar("T")


def read_preset(name: str | Path, kind: type[T], default: T | None = None) -> T:
    """Read a YAML preset into a configuration.

    Args:
        name: a preset such as ``"hydra/digits"`` or ``"hydra/digits-erk"`` (see recipes/presets.py;
            any command may read another's), or a path to a file.
        kind: the dataclass to fill.
        default: has what the preset leaves out; None takes the dataclass's defaults.

    Raises:
        ValueError: for an unknown preset, a file that is no YAML mapping, or an unknown key or
            illegal value, naming it and what is legal.
    """
    filled = kind() if default is None else default
    for layer in preset_layers(name):
        filled = build(kind, layer.settings, where=layer.where, default=filled)
    return filled


def build(kind: type[T], content: Mapping[str, Any], *, where: str, default: T | None = None) -> T:
    """Fill a dataclass from plain mappings, strictly.

    Args:
        kind: the dataclass.
        content: its settings; sections may be partial.
        where: what an error calls the place.
        default: has what the content leaves out; None takes the dataclass's defaults.

    Raises:
        ValueError: naming an unknown key or an illegal value, where it stands, and what is legal.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: {content!r} is no mapping of {kind.__name__}'s settings.")
    hints = typing.get_type_hints(kind)
    legal = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := [key for key in content if key not in legal]:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; legal: {', '.join(legal)}.")
    base: Any = kind() if default is None else default
    values = {
        key: _convert(hints[key], value, where=f"{where}: {key}", default=getattr(base, key))
        for key, value in content.items()
    }
    filled: T = dataclasses.replace(base, **values)
    return filled


def _convert(hint: Any, value: Any, *, where: str, default: Any = None) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where=where, default=default)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{where} is {value!r}; legal: {', '.join(map(str, options))}.")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _convert(options[0], value, where=where)
    if hint is Any:
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; legal: a mapping.")
        return {
            _convert(options[0], key, where=where): _convert(
                options[1], each, where=f"{where}: {key}"
            )
            for key, each in value.items()
        }
    if origin is tuple:
        some = len(options) if options[-1] is not Ellipsis else None
        if not isinstance(value, list | tuple) or some not in (None, len(value)):
            raise ValueError(
                f"{where} is {value!r}; legal: a list{f' of {some}' * (some is not None)}."
            )
        return tuple(_convert(options[0], each, where=where) for each in value)
    try:
        return _plain(hint, value)
    except (TypeError, ValueError, OverflowError):
        legal = "float, finite" if hint is float else hint.__name__
        raise ValueError(f"{where} is {value!r}; legal: {legal}.") from None


def _plain(hint: Any, value: Any) -> Any:
    """Return a value in the type of its setting, or raise where it is none of that type."""
    # YAML reads 1e-3 as text, and the radius 0.1, which may be 8/255 too, as a number.
    written: Any = {bool: bool, Path: str | Path}.get(hint, str | int | float)
    if not isinstance(value, written) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    if hint is Path and value == "":
        raise ValueError
    if hint not in (int, float):
        return hint(value)
    if hint is int and isinstance(value, int):
        return value
    number = float(value)
    if not math.isfinite(number) or (hint is int and number != int(number)):
        raise ValueError
    return hint(number)


def as_plain(config: Any) -> Any:
    """Return a configuration as mappings, lists, strings and numbers."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config
