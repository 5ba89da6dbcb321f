"""The command line, ``robust-plugin COMMAND``: what the commands are says ``_USAGE``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from robust_plugin.recipes.catalogue.folder import written
from robust_plugin.recipes.catalogue.preset_list import listing
from robust_plugin.recipes.catalogue.published import beside_published
from robust_plugin.recipes.compare.comparison import compare
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.read import as_plain, build, read_preset
from robust_plugin.recipes.dry.comparison import dry_comparison
from robust_plugin.recipes.dry.run import dry_run
from robust_plugin.recipes.evaluate.before_after import before_after
from robust_plugin.recipes.evaluate.network import evaluate_network
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.pages.plots import plot_kept
from robust_plugin.recipes.papers.registry import RECIPES, execute, finished_run
from robust_plugin.recipes.runtime.process_group import processes
from robust_plugin.recipes.runtime.workers import keep_freed_memory
from robust_plugin.recipes.training.run import Run

T = TypeVar("T")

_USAGE = """\
robust-plugin COMMAND [--config PRESET] [--out FOLDER] [--dry-run] [settings]

  magnitude   Sehwag 2019: robust training, magnitude pruning (one-shot or iterative), fine-tuning
  hydra       HYDRA: importance scores learned on the robust loss
  harp        HARP: scores and layer-wise rates learned on the robust loss
  compare     rows of methods on equal terms, each with its own tuned learning rate
  evaluate    a run folder, or any model with a checkpoint: PGD, AutoAttack, security curve, proofs
  channels    the table before and after of finished runs on channels: RUN [RUN ...]
  list        all presets, with the densities at which figures are published

Every setting is an option: robust-plugin hydra --config hydra/digits --density 0.05 \\
--threat.eps 8/255. "robust-plugin COMMAND --help" lists them. The same command continues an
interrupted run. With --dry-run magnitude, hydra, harp and compare say what they would do, how long
it takes and what they would write. On several GPUs:

  torchrun --nproc-per-node 8 -m robust_plugin.recipes.cli hydra --config hydra/cifar10-wrn28-4
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    try:
        try:
            return _main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # here, and not at exit, where nobody could catch it
    except BrokenPipeError:
        # Who read has seen enough (head). What is left in the buffer has to go somewhere at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as other commands end


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    command, rest = words[0], words[1:]
    keep_freed_memory()
    try:
        if command in ("magnitude", "hydra", "harp"):
            _recipe(command, rest)
        elif command == "compare":
            _compare(rest)
        elif command == "evaluate":
            _evaluate(rest)
        elif command == "channels":
            if not rest:
                raise ValueError("channels of what? Give the folders of finished runs.")
            for folder in rest:
                print(f"{folder}\n{before_after(finished_run(Path(folder)))}\n")
        elif command == "list":
            if rest:
                raise ValueError(f"list takes no words, and got {' '.join(rest)!r}.")
            print(listing())
        else:
            print(f"unknown command {command!r}\n\n{_USAGE}", end="", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        rank = _rank()
        print(f"error{f' in process {rank}' if rank else ''}: {error}", file=sys.stderr)
        return 2
    return 0


def _recipe(command: str, words: list[str]) -> None:
    kind, _ = RECIPES[command]
    given, words = _take(words, "--config", "")
    preset = given or f"{command}/digits"
    out, words = _take(words, "--out", f"runs/{command}")
    dry, words = _dry(words)
    begun = read_preset(preset, kind)
    config = _parse(kind, begun, words, f"robust-plugin {command}")
    if not given:
        _say_base(preset)
    if dry:
        print(dry_run(command, config, Path(out)))
        return
    with processes() as first:
        report = execute(command, config, Path(out))
    if not first:
        return
    kept = _kept(Path(out))
    plot_kept({command: kept}, Path(out) / "kept.png")
    share = sum(k for k, _ in kept.values()) / sum(n for _, n in kept.values())
    what = f"prunable {config.structure}"
    print(report)
    if config.evaluation.smooth:
        print((Path(out) / "smoothing.txt").read_text(), end="")
    print(f"kept {100 * share:.3g} % of the {what}; all of it in {out}")
    if published := beside_published(command, begun, config, Path(out)):
        print(f"\n{published}")
    if config.structure == "channels":
        print(f"\n{before_after(Run(Path(out), config))}\n")
    print(written(Path(out)))


def _compare(words: list[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("compare starts its own processes: give --jobs, and leave torchrun out.")
    given, words = _take(words, "--config", "")
    preset = given or "compare/digits-demo"
    out, words = _take(words, "--out", "runs/compare")
    dry, words = _dry(words)
    config = _parse(
        CompareConfig, read_preset(preset, CompareConfig), words, "robust-plugin compare"
    )
    if not given:
        _say_base(preset)
    if dry:
        print(dry_comparison(config, Path(out)))
        return
    print(compare(config, Path(out)))
    print(f"\nreport.html (report.json, report.txt and the plots beside it) is in {out}")


# What everybody types, for settings that stand in a section.
_SHORT = {"--attack": "--attacks", "--eps": "--threat.eps", "--norm": "--threat.norm"}


_EVALUATE = """\
What is measured, and how. Beside the options below: --config PRESET; --out FOLDER, for report.json,
report.html, report.txt and adversarial.pt, or --out FILE.json for the report alone; --attack, --eps
and --norm are short for --attacks, --threat.eps and --threat.norm."""


def _evaluate(words: list[str]) -> None:
    default = EvaluateConfig()
    if words and not words[0].startswith("-"):
        default, words = of_run(Path(words[0])), words[1:]
    preset, words = _take(words, "--config", "")
    out, words = _take(words, "--out", "")
    if preset:
        default = read_preset(preset, EvaluateConfig, default)
    words = [_SHORT.get(name, name) + equals + value for name, equals, value in map(_split, words)]
    again = [option for option in ("--attacks", "--radii") if _count(words, option) > 1]
    if again:
        raise ValueError(f"{again[0]} is given twice; give all of them after one.")
    config = _parse(
        EvaluateConfig, default, words, "robust-plugin evaluate [RUN FOLDER]", _EVALUATE
    )
    if config.weights == EvaluateConfig().weights and not config.weights.exists():
        raise ValueError("evaluate what? Give a run folder, or --model and --weights of a network.")
    with processes() as first:
        found = evaluate_network(config, Path(out) if out and first else None, before=default)
        if first:
            print(found)
        if first and out:
            print(f"\nall of it is in {out}")


def _say_base(preset: str) -> None:
    """Say whose settings stand where the command line gives none; they fit one data set."""
    if _rank() == 0:
        print(
            f"no --config: settings that are not given are those of {preset}; "
            "robust-plugin list shows other presets",
            file=sys.stderr,
        )


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _split(word: str) -> tuple[str, str, str]:
    return word.partition("=")


def _count(words: Sequence[str], option: str) -> int:
    return sum(name == option for name, _, _ in map(_split, words))


def _take(words: Sequence[str], option: str, default: str) -> tuple[str, list[str]]:
    """Take one option, ``--x VALUE`` or ``--x=VALUE``, out of the command line; the last wins."""
    left, value = [], default
    rest = iter(words)
    for word in rest:
        if word.startswith(f"{option}="):
            value = word.partition("=")[2]
        elif word == option:
            following = next(rest, None)
            if following is None:
                raise ValueError(f"{option} needs a value.")
            value = following
        else:
            left.append(word)
    return value, left


def _dry(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Take ``--dry-run`` out of the command line."""
    return "--dry-run" in words, [word for word in words if word != "--dry-run"]


def _parse(kind: type[T], default: T, words: list[str], prog: str, about: str = "") -> T:
    parsed = tyro.cli(kind, default=default, args=words, prog=prog, description=about or None)
    return build(kind, as_plain(parsed), where="options")  # as strict as a preset: no NaN


def _kept(folder: Path) -> dict[str, list[int]]:
    import json

    kept: dict[str, list[int]] = json.loads((folder / "report.json").read_text())["kept"]
    return kept


if __name__ == "__main__":
    sys.exit(main())
