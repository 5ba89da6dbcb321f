"""Read the command-line options of a command, and print its ``--help``.

argparse reads ``--config``, ``--out`` and ``--dry-run`` first, since the preset that ``--config``
names has the defaults of all other options. tyro then reads these other options, which are the
settings of the command, and prints the help of all options.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, cast

import tyro

from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import as_plain, build

T = TypeVar("T")

# Short names of options of ``evaluate``.
_SHORT_NAMES = {"--attack": "--attacks", "--eps": "--threat.eps", "--norm": "--threat.norm"}


@dataclass(frozen=True)
class TrainOptions(Generic[T]):
    """The options of a command that trains.

    Attributes:
        config: preset, or YAML file, with the values of all options that are not given. The command
            robust-plugin list prints the presets.
        out: folder for the results. An unfinished run in it is continued.
        dry_run: train nothing; print what the command would do, how long it would take and which
            files it would write.
        settings: all other options.
    """

    config: Annotated[str, tyro.conf.arg(metavar="PRESET")]
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    dry_run: tyro.conf.FlagCreatePairsOff[bool]
    settings: Annotated[T, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of ``evaluate``.

    Attributes:
        config: preset, or YAML file, whose settings replace those of the run folder. The command
            robust-plugin list prints the presets. None reads no preset.
        out: folder for report.json, report.html, report.txt and adversarial.pt, or a name that ends
            in .json to write only the report, as that file. None writes nothing.
        settings: all other options.
    """

    config: Annotated[str | None, tyro.conf.arg(metavar="PRESET")]
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")]
    settings: Annotated[EvaluateConfig, tyro.conf.arg(name="")]


def full_names(words: Sequence[str]) -> list[str]:
    """Replace the short names of options: ``--eps=1`` becomes ``--threat.eps=1``."""
    parts = [word.partition("=") for word in words]
    return [_SHORT_NAMES.get(name, name) + equals + value for name, equals, value in parts]


def read_common(
    words: Sequence[str], *, out: str, dry_run: bool = True
) -> tuple[argparse.Namespace, list[str]]:
    """Read --config, --out and --dry-run; return their values and all other words.

    Args:
        words: the command line after the command.
        out: the default of --out.
        dry_run: whether the command has --dry-run.

    Raises:
        ValueError: if --config or --out has no value, or --dry-run has one.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", default="")
    parser.add_argument("--out", default=out)
    if dry_run:
        parser.add_argument("--dry-run", action="store_true")
    try:
        return parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        option = error.argument_name
        needs = "takes no value" if option == "--dry-run" else "needs a value"
        raise ValueError(f"{option} {needs}.") from None


def read_settings(
    kind: type[T],
    options: TrainOptions[T] | EvaluateOptions,
    words: list[str],
    prog: str,
    about: str = "",
) -> T:
    """Read all options but those of ``read_common``; with --help, print all options and exit.

    Args:
        kind: the dataclass of the settings.
        options: the values of ``read_common``, for the help, and the defaults of the settings.
        words: the words that ``read_common`` left.
        prog: the command, as the help shows it.
        about: what the command does; by default the first line of the dataclass's docstring.
    """
    trains = isinstance(options, TrainOptions)
    parsed: Any = tyro.cli(
        cast(Any, TrainOptions)[kind] if trains else EvaluateOptions,
        default=options,
        args=words,
        prog=prog,
        description=about or (inspect.getdoc(kind) or "").partition("\n")[0],
    )
    return build(kind, as_plain(parsed.settings), where="options")  # as strict as presets: no NaN
