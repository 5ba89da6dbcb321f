"""Read the command-line options of a command.

``read_common`` reads ``--config``, ``--out``, ``--dry-run`` and ``--quiet`` first, because the
preset that ``--config`` names holds the defaults of all other options. ``read_settings`` then reads
these other options, which are the settings of the command, as strictly as presets are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar

from robust_plugin.recipes.config.option_list import Option, near_options, options_of
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.runtime.did_you_mean import did_you_mean

T = TypeVar("T")

COMMON = ("--config", "--out", "--dry-run", "--quiet", "--help", "--help-all")


@dataclass(frozen=True)
class Common:
    """The options that gradual, magnitude, hydra, harp, compare and evaluate share.

    Attributes:
        config: name of a preset or path of a YAML file; empty if not given.
        out: folder for the results.
        dry_run: print what the command would do, and do nothing else.
        quiet: print no progress.
        help: the help that is asked for, if any.
    """

    config: str
    out: str
    dry_run: bool
    quiet: bool
    help: Literal["none", "short", "all"]


class _Parser(argparse.ArgumentParser):
    """Parser that raises a ValueError where argparse would print to stderr and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}.")


def read_common(words: Sequence[str], *, out: str) -> tuple[Common, list[str]]:
    """Read the options that all commands with settings share.

    Args:
        words: the words of the command line that follow the command.
        out: the default of --out.

    Returns:
        tuple: the values, and all words that do not belong to these options.

    Raises:
        ValueError: if --config or --out has no value, or another of these options has one.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", default="")
    parser.add_argument("--out", default=out)
    for switch in ("--dry-run", "--quiet", "--help-all"):
        parser.add_argument(switch, action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    try:
        given, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        option = error.argument_name or ""
        needs = "needs a value" if option in ("--config", "--out") else "takes no value"
        raise ValueError(f"{option} {needs}.") from None
    wanted: Any = "all" if given.help_all else "short" if given.help else "none"
    return Common(given.config, given.out, given.dry_run, given.quiet, wanted), rest


def read_settings(
    begun: T, words: Sequence[str], *, command: str, short: Mapping[str, str] | None = None
) -> T:
    """Return settings in which those that the command line gives are replaced.

    Args:
        begun: the settings that apply where the command line gives none.
        words: the words of the command line without the common options.
        command: the command, for messages, such as "robust-plugin hydra".
        short: short names of options, such as {"--eps": "--threat.eps"}.

    Raises:
        ValueError: for an unknown option, an option without a value or with too many, or an illegal
            value. The message names what was probably meant.
    """
    options, short = options_of(type(begun)), short or {}
    parser = _Parser(prog=command, add_help=False, allow_abbrev=False)
    for option in options:
        _add(parser, option, [given for given, full in short.items() if full == option.name])
    words = [_hyphens(word) for word in words]
    known = {*parser._option_string_actions}
    for word in words:
        if word.startswith("--") and (name := word.partition("=")[0]) not in known:
            near = near_options(name, [*COMMON, *(option.name for option in options), *short])
            raise ValueError(
                f"unknown option {name}{did_you_mean(near)}; {command} --help-all lists all."
            )
    given, rest = _parsed(parser, words)
    if rest:
        raise ValueError(
            f"{rest[0]!r} belongs to no option; {command} --help shows what the command takes."
        )
    content: dict[str, Any] = {}
    for option in options:
        if option.path not in given:
            continue
        *sections, name = option.path.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = _value(option, given[option.path])
    return build(type(begun), content, where="options", default=begun)


def _add(parser: argparse.ArgumentParser, option: Option, short: Sequence[str]) -> None:
    """Add an option to a parser; values stay text, since ``build`` converts and checks them."""
    more: dict[str, Any] = {"action": "append", "nargs": "*"} if option.several else {}
    if option.kind is bool:
        more = {"action": argparse.BooleanOptionalAction}
    names = [option.name, *short]
    parser.add_argument(*names, dest=option.path, default=argparse.SUPPRESS, **more)


def _parsed(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the given values by the path of their setting, and the words left over."""
    parser.exit_on_error = False
    try:
        given, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        option = (error.argument_name or "").partition("/")[0]
        needs = "takes no value" if "ignored explicit" in error.message else "needs a value"
        raise ValueError(f"{option} {needs}.") from None
    return vars(given), rest


def _hyphens(word: str) -> str:
    """Return a word in which an option has hyphens in place of underscores; values are kept."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _value(option: Option, given: Any) -> Any:
    """Return a value from the command line as a preset would hold it."""
    if option.several:
        if len(given) > 1:
            raise ValueError(f"{option.name} is given twice; give all of them after one.")
        return given[0]
    return None if option.optional and given == "None" else given
