"""Fill the dataclasses of settings from YAML presets and command-line options, strictly.

The dataclasses, such as those of ``schema.py``, define the names and types of the settings.
pydantic compares the given values with these types and finds all mistakes at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AllowInfNan,
    BeforeValidator,
    ConfigDict,
    Strict,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from robust_plugin.recipes.config.presets import preset_layers
from robust_plugin.recipes.runtime.did_you_mean import did_you_mean, nearest

T = TypeVar("T")

# What is legal where pydantic reports an error of this type. Other texts come with the error.
_LEGAL = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "string_type": "text",
    "is_instance_of": "a path",  # Path is the only class that is checked this way
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
}


def read_preset(name: str | Path, kind: type[T], default: T | None = None) -> T:
    """Read a YAML preset into a dataclass of settings.

    Args:
        name: name of a preset such as ``"hydra/digits"`` or ``"hydra/digits-erk"`` (see
            ``recipes/config/presets.py``), or a path to a YAML file. It may be a preset of another
            command.
        kind: the dataclass to fill.
        default: values of the settings that the preset leaves out; None for the defaults of the
            dataclass.

    Raises:
        ValueError: for an unknown preset, a file that is no YAML mapping, an unknown setting or an
            illegal value. The message names each wrong setting and what is legal.
    """
    filled = kind() if default is None else default
    for layer in preset_layers(name):
        filled = build(kind, layer.settings, where=layer.where, default=filled)
    return filled


def build(kind: type[T], content: Mapping[str, Any], *, where: str, default: T | None = None) -> T:
    """Fill a dataclass of settings from plain mappings, strictly.

    Args:
        kind: the dataclass.
        content: the given settings by name. A section (a dataclass inside the dataclass) is also
            given as a mapping, which may leave settings out.
        where: where the content comes from, such as a file; error messages begin with it.
        default: values of the settings that the content leaves out; None for the defaults of the
            dataclass.

    Raises:
        ValueError: for unknown settings and illegal values. The message names each of them by its
            path (``threat.eps``), and says what is legal.
    """
    try:
        given = _adapter(kind).validate_python(content)  # type: ignore[arg-type]
    except ValidationError as error:
        found = [_sentence(kind, each) for each in error.errors(include_url=False)]
        several = f"{len(found)} settings are wrong:\n  " if len(found) > 1 else ""
        raise ValueError(f"{where}: {several}" + "\n  ".join(found)) from None
    filled: T = _replaced(kind() if default is None else default, given)
    return filled


def as_plain(config: Any) -> Any:
    """Return settings as nested dicts, lists, strings and numbers, as JSON and YAML can hold.

    Args:
        config: a dataclass of settings, or a part of one: a mapping, a list or tuple, or a value.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(_strict(kind))


def _strict(hint: Any) -> Any:
    """Return the type by which pydantic checks a setting without guessing what was meant.

    By default pydantic reads True as 1 and "no" as False; here both are refused. A number may be
    given as text, because YAML reads 1e-3 as text. A text may be given as a number, because a
    radius is text ("8/255") but may be given as 0.1.

    Args:
        hint: type hint of the setting. A dataclass becomes a pydantic model in which all settings
            are optional, because the content may leave settings out.
    """
    origin: Any = typing.get_origin(hint)
    options = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        fields: dict[str, Any] = {name: (_strict(each), None) for name, each in hints.items()}
        name = getattr(hint, "__name__", "")
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    if origin is tuple:
        length = None if options[-1] is Ellipsis else len(options)
        items = tuple(each if each is Ellipsis else _strict(each) for each in options)
        return Annotated[origin[items], Strict(), BeforeValidator(_to_tuple(length))]
    if origin is Mapping:
        return origin[tuple(map(_strict, options))]
    if origin in (types.UnionType, typing.Union):  # the only unions in the settings are with None
        return _strict(options[0]) | None
    return {
        bool: Annotated[bool, Strict()],
        int: Annotated[int, Strict(), BeforeValidator(_to_whole)],
        float: Annotated[float, Strict(), AllowInfNan(False), BeforeValidator(_to_number)],
        str: Annotated[str, Strict(), BeforeValidator(_to_text)],
        Path: Annotated[Path, Strict(), BeforeValidator(_to_path)],
    }.get(hint, hint)


# These functions convert a value before pydantic checks its type. They return a value that they
# cannot convert unchanged, so that pydantic refuses it.


def _to_number(value: Any) -> Any:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return value
    return number if math.isfinite(number) else value


def _to_whole(value: Any) -> Any:
    if isinstance(value, int):  # not through a float, which rounds large numbers
        return value
    number = _to_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


def _to_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _to_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value else value


def _to_tuple(length: int | None) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if length not in (None, len(value)):
            raise PydanticCustomError("length", "a list of {length}", {"length": length})
        return tuple(value)

    return convert


def _replaced(config: Any, given: Any) -> Any:
    """Return a copy of a dataclass of settings in which the given settings are replaced.

    Args:
        config: the dataclass with the old settings.
        given: validated pydantic model; only the settings that it was given are replaced.
    """
    values = {name: getattr(given, name) for name in given.model_fields_set}
    sections = {n for n in values if dataclasses.is_dataclass(getattr(config, n))}
    return dataclasses.replace(
        config,
        **{n: _replaced(getattr(config, n), v) if n in sections else v for n, v in values.items()},
    )


def _sentence(kind: type[Any], error: ErrorDetails) -> str:
    """Return one of pydantic's errors as a sentence: the setting, its value, and what is legal.

    Args:
        kind: the dataclass of settings.
        error: the error, as pydantic reports it.
    """
    *sections, name = error["loc"] or [""]
    path, value = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        legal = _names_of(kind, sections)
        near = nearest(str(name), legal)
        meant = did_you_mean([".".join([*map(str, sections), each]) for each in near])
        return f"unknown setting {path}{meant}; legal: {', '.join(legal)}."
    if name == "[key]":
        return f"{'.'.join(map(str, sections[:-1]))} has the key {value!r}; legal: text."
    if error["type"] == "literal_error":
        legal_values = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        meant = did_you_mean(nearest(str(value), legal_values))
        return f"{path} is {value!r}{meant}; legal: {', '.join(legal_values)}."
    what = f"{path} is {value!r}" if path else f"{value!r} is given"
    return f"{what}; legal: {_LEGAL.get(error['type'], error['msg'])}."


def _names_of(kind: type[Any], sections: Sequence[int | str]) -> list[str]:
    """Return the names of all settings in a section of a dataclass.

    Args:
        kind: the dataclass of settings.
        sections: names that lead to the section, the outermost first; empty for ``kind`` itself.
    """
    for section in sections:
        kind = typing.get_type_hints(kind)[str(section)]
    return [field.name for field in dataclasses.fields(kind)]
