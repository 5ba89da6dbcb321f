"""Read the command-line options of a command, and print its ``--help``.

argparse reads ``--config``, ``--out`` and ``--dry-run`` first, because the preset that ``--config``
names holds the defaults of all other options. tyro then reads these other options, which are the
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
    """The options of a command that trains: magnitude, hydra, harp or compare.

    Attributes:
        config: name of a preset, or path of a YAML file, with the values of all options that are
            not given. The command robust-plugin list prints the presets.
        out: folder for the results. If it holds an unfinished run, this run is continued.
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
        config: name of a preset, or path of a YAML file, whose settings replace those of the run
            folder. The command robust-plugin list prints the presets. None reads no preset.
        out: folder to which report.json, report.html, report.txt and adversarial.pt (the
            adversarial examples) are written; or the name of a file that ends in .json, to write
            only report.json, under this name. None writes nothing.
        settings: all other options.
    """

    config: Annotated[str | None, tyro.conf.arg(metavar="PRESET")]
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")]
    settings: Annotated[EvaluateConfig, tyro.conf.arg(name="")]


def full_names(words: Sequence[str]) -> list[str]:
    """Replace the short names of the options of ``evaluate`` in a command line.

    Args:
        words: the words of the command line; a word is a name, a value, or both as ``name=value``.

    Returns:
        list[str]: the words with the full names of options: ``--eps=1`` becomes ``--threat.eps=1``.
    """
    parts = [word.partition("=") for word in words]
    return [_SHORT_NAMES.get(name, name) + equals + value for name, equals, value in parts]


def read_common(
    words: Sequence[str], *, out: str, dry_run: bool = True
) -> tuple[argparse.Namespace, list[str]]:
    """Read --config, --out and --dry-run from a command line.

    Args:
        words: the words of the command line that follow the command.
        out: the default of --out.
        dry_run: whether the command has the option --dry-run.

    Returns:
        tuple: the values, as the attributes ``config`` (empty if not given), ``out`` and, if the
        command has this option, ``dry_run``; and all words that do not belong to these options.

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
    """Return the settings from a command line; with --help, print all options and exit.

    Args:
        kind: the dataclass of the settings, such as HydraConfig.
        options: the values that ``read_common`` found, which the help shows, and the settings that
            apply where the command line gives none.
        words: the words of the command line without the options of ``read_common``.
        prog: the command, as the help shows it, such as "robust-plugin hydra".
        about: what the command does, for the help; by default the first line of the docstring of
            ``kind``.

    Raises:
        ValueError: for an illegal value. For an unknown option, tyro prints an error and exits.
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
