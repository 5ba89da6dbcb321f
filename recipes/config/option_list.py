"""The list of a command's options, made from the dataclass of its settings.

Each setting is one option: ``prune.weight_decay`` is ``--prune.weight-decay``. Its description is
the one in the docstring of the dataclass.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Metavariables in the help, by the type of the setting.
_VALUES = {"int": "N", "float": "NUMBER", "str": "TEXT", "Path": "PATH"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        path: name of the setting as in presets, such as ``prune.weight_decay``.
        kind: type of a value, without None: bool, int, float, str, Path, or Literal[...].
        optional: whether the value may be None.
        several: whether the option takes several values.
        about: description, one paragraph.
        section: description of the section that the setting belongs to; empty outside of sections.
    """

    path: str
    kind: Any
    optional: bool
    several: bool
    about: str
    section: str = ""

    @property
    def name(self) -> str:
        """The option on the command line, such as ``--prune.weight-decay``."""
        return "--" + self.path.replace("_", "-")

    @property
    def legal(self) -> tuple[str, ...]:
        """The values to choose from; empty if there is no such list."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is typing.Literal else ()

    @property
    def value(self) -> str:
        """What the help shows for the value: ``N``, ``{sgd,adam}``; empty for a switch."""
        if self.kind is bool:
            return ""
        one = f"{{{','.join(self.legal)}}}" if self.legal else _VALUES[self.kind.__name__]
        return f"{one} [{one} ...]" if self.several else one


def options_of(kind: type[Any]) -> tuple[Option, ...]:
    """Return the options of a command, those without a section first.

    Settings that are a mapping, such as the rows of a comparison, have no option.

    Args:
        kind: the dataclass of the command's settings.
    """
    return tuple(sorted(_options(kind, "", ""), key=lambda option: "." in option.path))


def _options(kind: type[Any], above: str, section: str) -> Iterator[Option]:
    about, hints = descriptions(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, hint = above + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _options(typing.cast(type[Any], hint), f"{path}.", about[field.name])
            continue
        origin: Any = typing.get_origin(hint)
        parts = typing.get_args(hint)
        optional, several = origin in (types.UnionType, typing.Union), origin is tuple
        if origin is Mapping:
            continue
        value = parts[0] if optional or several else hint
        yield Option(path, value, optional, several, about[field.name], section)


def descriptions(kind: type[Any]) -> dict[str, str]:
    """Return the description of each attribute of a dataclass by name, one paragraph each.

    Args:
        kind: dataclass; it and the dataclasses that it extends list attributes in their docstrings.
    """
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, listed = (inspect.cleandoc(each.__doc__ or "")).partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def near_options(word: str, options: Sequence[str]) -> list[str]:
    """Return up to three options that a misspelt one may stand for, the nearest first.

    An option also matches without its section: ``--eps`` may stand for ``--threat.eps``.

    Args:
        word: the misspelt option.
        options: all options of the command.
    """
    own, given = word.lstrip("-"), {}
    for option in options:
        name = option.lstrip("-")
        leaf = name.rpartition(".")[2]
        likeness = max(
            difflib.SequenceMatcher(None, own, name).ratio(),
            0.9 * difflib.SequenceMatcher(None, own, leaf).ratio(),
            float(own == name.replace(".", "-")),  # --prune-lr
            0.7 * (len(own) > 2 and leaf.startswith(own)),  # --dens
        )
        if likeness >= 0.7:
            given[option] = likeness
    best = max(given.values(), default=0.0)
    least = best - (0.05 if best > 0.95 else 0.2)  # one wrong letter leaves no doubt
    near = [option for option, likeness in given.items() if likeness > least]
    return sorted(near, key=lambda option: -given[option])[:3]
