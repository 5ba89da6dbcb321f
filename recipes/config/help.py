"""The two help texts of a command: ``--help`` with a dozen options, ``--help-all`` with all.

The descriptions in ``--help`` are those of ``help_tables.py``; those in ``--help-all`` are the
docstrings of the settings.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from robust_plugin.recipes.config.help_tables import Groups
from robust_plugin.recipes.config.option_list import Option, options_of

_WIDTH, _LEAST = 100, 40  # columns
_COLUMN = 30  # width of the column of options in the short help


def short_help(
    begun: Any, groups: Groups, common: Mapping[str, str], *, usage: str, about: str
) -> str:
    """Return the text of ``--help``: the options of all commands, then those that most users set.

    Args:
        begun: settings, whose values are shown as the defaults.
        groups: the settings to show, by group; those that ``begun`` does not have are left out.
        common: descriptions of the options that all commands share, by option and value.
        usage: how the command is called.
        about: what the command does.
    """
    width = _width()
    options = {option.path: option for option in options_of(type(begun))}
    rows = [[(name, text) for name, text in common.items()]]
    titles = [""]
    for title, table in groups.items():
        rows.append(
            [
                (f"{options[path].name} {value}", f"{text} [{_default(options[path], begun)}]")
                for path, (value, text) in table.items()
                if path in options
            ]
        )
        titles.append(title)
    lines = [*_wrapped(f"usage: {usage}", width, "       "), "", *_wrapped(about, width)]
    for title, each in zip(titles, rows, strict=True):
        lines += ["", *([f"{title}:"] if title else []), *_two_columns(each, width)]
    command = usage.partition(" [")[0]
    end = f"Defaults are in brackets. {command} --help-all describes all options."
    return "\n".join([*lines, "", *_wrapped(end, width)])


def full_help(
    begun: Any,
    common: Mapping[str, str],
    *,
    usage: str,
    about: str,
    short: Mapping[str, str] | None = None,
) -> str:
    """Return the text of ``--help-all``: all options with their full descriptions.

    Args:
        begun: settings, whose values are shown as the defaults.
        common: descriptions of the options that all commands share, by option and value.
        usage: how the command is called.
        about: what the command does.
        short: short names of options, such as {"--eps": "--threat.eps"}.
    """
    width, also = _width(), {full: name for name, full in (short or {}).items()}
    lines = [*_wrapped(f"usage: {usage}", width, "       "), "", *_wrapped(about, width)]
    for name, text in common.items():
        lines += ["", f"  {name}", *_wrapped(text, width, "      ", first="      ")]
    for section, options in groupby(options_of(type(begun)), key=_section):
        if section[0]:
            lines += ["", *_wrapped(f"{section[0]}: {section[1]}", width)]
        for option in options:
            no = f", --no-{option.name[2:]}" if option.kind is bool else ""
            names = ", ".join([option.name, *filter(None, [also.get(option.name)])])
            text = f"{option.about} [{_default(option, begun)}]"
            head = f"{names}{no} {option.value}".rstrip()
            lines += ["", *_wrapped(head, width, "      ", first="  ")]
            lines += _wrapped(text, width, "      ", first="      ")
    return "\n".join([*lines, "", *_wrapped("Defaults are in brackets.", width)])


def _section(option: Option) -> tuple[str, str]:
    """Return the path and the description of the section that an option belongs to."""
    return option.path.rpartition(".")[0], option.section


def _default(option: Option, begun: Any) -> str:
    """Return the value of a setting as it would be written on the command line."""
    value = begun
    for name in option.path.split("."):
        value = getattr(value, name)
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _width() -> int:
    """Return the width of the terminal in columns, within the limits of a readable page."""
    return max(_LEAST, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))


def _wrapped(text: str, width: int, indent: str = "", *, first: str = "") -> list[str]:
    """Return a paragraph as lines; options and names are not broken at their hyphens."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _two_columns(rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield lines with options on the left and descriptions on the right, or below if narrow."""
    for name, text in rows:
        beside = len(name) + 4 <= _COLUMN and width >= 2 * _COLUMN + 20
        indent = " " * _COLUMN if beside else "      "
        first = f"  {name}".ljust(_COLUMN) if beside else indent
        if not beside:
            yield f"  {name}"
        yield from _wrapped(text, width, indent, first=first)
