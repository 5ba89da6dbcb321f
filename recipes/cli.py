"""The command line, ``robust-plugin COMMAND``; ``_USAGE`` lists the commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from robust_plugin.recipes.catalogue.preset_list import listing
from robust_plugin.recipes.catalogue.published_comparison import beside_published
from robust_plugin.recipes.catalogue.run_files import written
from robust_plugin.recipes.compare.comparison import compare
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.options import (
    EvaluateOptions,
    TrainOptions,
    full_names,
    read_common,
    read_settings,
)
from robust_plugin.recipes.config.read import read_preset
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

_USAGE = """\
robust-plugin COMMAND [--config PRESET] [--out FOLDER] [--dry-run] [settings]

  magnitude   Sehwag 2019: robust training, magnitude pruning (one-shot or iterative), fine-tuning
  hydra       HYDRA: importance scores learned on the robust loss
  harp        HARP: scores and layer densities learned on the robust loss
  compare     several methods on equal terms, each with its own tuned learning rate
  evaluate    PGD, AutoAttack, security curve and proofs for a finished run or any saved network
  channels    for finished runs that pruned channels, a table before and after: RUN [RUN ...]
  list        all presets, with the densities that papers have published accuracies for

Every setting is an option: robust-plugin hydra --config hydra/digits --density 0.05 \\
--threat.eps 8/255. "robust-plugin COMMAND --help" lists the options. To continue an interrupted
run, give the same command again. With --dry-run, magnitude, hydra, harp and compare only print
what they would do, how long it would take and which files they would write. On several GPUs:

  torchrun --nproc-per-node 8 -m robust_plugin.recipes.cli hydra --config hydra/cifar10-wrn28-4
"""

# These texts are single lines, since tyro would keep breaks before the names of options.
_COMPARE = (
    "Compare methods at several densities and seeds on equal terms; the result is a table with one "
    "row per method. The preset names the methods. For others, write a YAML file with the keys "
    "extends (a preset) and rows (the methods), and give it as --config."
)
_EVALUATE = (
    "Measure the accuracy of a network under attack, and what can be proved about it. RUN FOLDER "
    "is the folder of a finished run, whose settings are then the defaults. Without one, give "
    "--model and --checkpoint of a network. --attack, --eps and --norm are short for --attacks, "
    "--threat.eps and --threat.norm."
)

_CHANNELS = """\
usage: robust-plugin channels RUN [RUN ...]

Print a table of accuracy, size and speed before and after the removal of channels. Each RUN is the
folder of a finished run with --structure channels.
"""

_LIST = """\
usage: robust-plugin list

Print all presets, the suffixes that their names may have, and the densities that papers have
published accuracies for.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: the words after ``robust-plugin``; None for those of this process.

    Returns:
        int: 0 after success, 2 after an error, 130 after Ctrl-C, and 141 if the reader of the
        output has closed it.
    """
    try:
        try:
            return _main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # here, since an error at exit could not be caught
    except BrokenPipeError:
        # The reader of the output has closed it, as head does. The rest of the buffer is written
        # at exit and needs a place to go to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, the status of other commands in this case


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    command, rest = words[0], words[1:]
    if command in ("channels", "list") and {"-h", "--help"} & set(rest):
        print(_CHANNELS if command == "channels" else _LIST, end="")
        return 0
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
    kind = RECIPES[command].config
    given, words = read_common(words, out=f"runs/{command}")
    preset, out = given.config or f"{command}/digits", Path(given.out)
    begun = read_preset(preset, kind)
    options = TrainOptions(preset, given.out, given.dry_run, begun)
    config = read_settings(kind, options, words, f"robust-plugin {command}")
    if not given.config:
        _say_preset(preset)
    if given.dry_run:
        print(dry_run(command, config, out))
        return
    with processes() as first:
        report = execute(command, config, out)
    if not first:
        return
    kept = _kept(out)
    plot_kept({command: kept}, out / "kept.png")
    share = sum(k for k, _ in kept.values()) / sum(n for _, n in kept.values())
    what = f"prunable {config.structure}"
    print(report)
    if config.evaluation.smooth:
        print((out / "smoothing.txt").read_text(), end="")
    print(f"kept {100 * share:.3g} % of the {what}; all of it in {out}")
    if published := beside_published(command, begun, config, out):
        print(f"\n{published}")
    if config.structure == "channels":
        print(f"\n{before_after(Run(out, config))}\n")
    print(written(out))


def _compare(words: list[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("compare starts its own processes: give --jobs, and leave torchrun out.")
    given, words = read_common(words, out="runs/compare")
    preset, out = given.config or "compare/digits-demo", Path(given.out)
    begun = read_preset(preset, CompareConfig)
    options = TrainOptions(preset, given.out, given.dry_run, begun)
    config = read_settings(CompareConfig, options, words, "robust-plugin compare", _COMPARE)
    if not given.config:
        _say_preset(preset)
    if given.dry_run:
        print(dry_comparison(config, out))
        return
    print(compare(config, out))
    print(f"\nreport.html (report.json, report.txt and the plots beside it) is in {out}")


def _evaluate(words: list[str]) -> None:
    default = EvaluateConfig()
    if words and not words[0].startswith("-"):
        default, words = of_run(Path(words[0])), words[1:]
    given, words = read_common(words, out="", dry_run=False)
    if given.config:
        default = read_preset(given.config, EvaluateConfig, default)
    words = full_names(words)
    names = [word.partition("=")[0] for word in words]
    if again := [option for option in ("--attacks", "--radii") if names.count(option) > 1]:
        raise ValueError(f"{again[0]} is given twice; give all of them after one.")
    options = EvaluateOptions(given.config or None, given.out or None, default)
    prog = "robust-plugin evaluate [RUN FOLDER]"
    config = read_settings(EvaluateConfig, options, words, prog, _EVALUATE)
    if config.checkpoint == EvaluateConfig().checkpoint and not config.checkpoint.exists():
        raise ValueError(
            "evaluate what? Give a run folder, or --model and --checkpoint of a network."
        )
    with processes() as first:
        out = Path(given.out) if given.out and first else None
        found = evaluate_network(config, out, before=default)
        if first:
            print(found)
        if first and given.out:
            print(f"\nall of it is in {given.out}")


def _say_preset(preset: str) -> None:
    """Print the name of the preset that is used because --config is not given.

    The user should know it, because its settings fit only one data set.
    """
    if _rank() == 0:
        print(
            f"no --config: settings that are not given are those of {preset}; "
            "robust-plugin list shows other presets",
            file=sys.stderr,
        )


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _kept(folder: Path) -> dict[str, list[int]]:
    """Return [kept, all] weights or channels of each layer by name, from a run's report.json."""
    kept: dict[str, list[int]] = json.loads((folder / "report.json").read_text())["kept"]
    return kept


if __name__ == "__main__":
    sys.exit(main())
