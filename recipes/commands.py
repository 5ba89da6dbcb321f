"""The commands of the command line; ``COMMANDS`` has them by name.

Each command reads its options, prints its help or its plan if that is asked for, and otherwise does
its work while it holds the lock of the folder that it writes to.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from robust_plugin.recipes.catalogue.preset_list import listing
from robust_plugin.recipes.catalogue.published_comparison import beside_published
from robust_plugin.recipes.catalogue.run_files import written
from robust_plugin.recipes.compare.comparison import compare
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.help import full_help, short_help
from robust_plugin.recipes.config.help_tables import (
    CHANNELS,
    COMPARE,
    COMPARING,
    EVALUATE,
    EVALUATING,
    LIST,
    TRAINING,
    Groups,
    common_options,
)
from robust_plugin.recipes.config.options import Common, read_common, read_settings
from robust_plugin.recipes.config.read import read_preset
from robust_plugin.recipes.dry.comparison import dry_comparison
from robust_plugin.recipes.dry.evaluation import dry_evaluation
from robust_plugin.recipes.dry.run import dry_run
from robust_plugin.recipes.evaluate.before_after import before_after, compared
from robust_plugin.recipes.evaluate.end_of_run import findings_of
from robust_plugin.recipes.evaluate.network import evaluate_network
from robust_plugin.recipes.evaluate.run_report import page_or_reason
from robust_plugin.recipes.evaluate.settings import of_run
from robust_plugin.recipes.pages.plots import plot_kept
from robust_plugin.recipes.papers.registry import (
    RECIPES,
    finished_run,
    recipe_of,
    train_and_evaluate,
)
from robust_plugin.recipes.runtime.folder_lock import locked
from robust_plugin.recipes.runtime.process_group import processes
from robust_plugin.recipes.runtime.progress import RunProgress, clock, hide_progress, shows_progress
from robust_plugin.recipes.training.run import Run

# Short names of options of ``evaluate``.
_SHORT = {"--attack": "--attacks", "--eps": "--threat.eps", "--norm": "--threat.norm"}


def _recipe(command: str, words: list[str]) -> None:
    kind, began, line = RECIPES[command].config, time.monotonic(), [command, *words]
    given, words = read_common(words, out=f"runs/{command}")
    preset, out = given.config or _preset_for(command, words), Path(given.out)
    begun = read_preset(preset, kind)
    about = (inspect.getdoc(kind) or "").partition("\n")[0]
    if _helped(command, given, begun, TRAINING, about, preset=preset):
        return
    config = read_settings(begun, words, command=f"robust-plugin {command}")
    hide_progress(given.quiet)
    _say_preset(command, preset, given=bool(given.config))
    if given.dry_run:
        print(dry_run(command, config, out))
        return
    with _writing_to(out), processes() as first:
        run = Run(out, config)
        report = train_and_evaluate(command, run)
        if not first:
            return
        kept = _kept(out)
        plot_kept({command: kept}, out / "kept.png")
        share = sum(k for k, _ in kept.values()) / sum(n for _, n in kept.values())
        what = f"prunable {config.structure}"
        print(report)
        for finding in findings_of(run):
            print(f"finding: {finding}")
        if config.evaluation.smooth:
            print((out / "smoothing.txt").read_text(), end="")
        print(f"kept {100 * share:.3g} % of the {what}; all of it in {out}")
        if published := beside_published(command, begun, config, out):
            print(f"\n{published}")
        page = page_or_reason(run, method=command, command=f"robust-plugin {shlex.join(line)}")
        if config.structure == "channels":
            print(f"\n{compared(run, stored=True)}\n")
        print(f"{written(out)}\n{page}")
    _say_time(began)


def _compare(command: str, words: list[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("compare starts its own processes: give --jobs, and leave torchrun out.")
    began, line = time.monotonic(), [command, *words]
    given, words = read_common(words, out="runs/compare")
    preset, out = given.config or "compare/digits-demo", Path(given.out)
    begun = read_preset(preset, CompareConfig)
    if _helped(command, given, begun, COMPARING, COMPARE, preset=preset):
        return
    config = read_settings(begun, words, command="robust-plugin compare")
    hide_progress(given.quiet)
    _say_preset(command, preset, given=bool(given.config))
    if given.dry_run:
        print(dry_comparison(config, out))
        return
    with _writing_to(out):
        print(compare(config, out, command=f"robust-plugin {shlex.join(line)}"))
    print(f"\nreport.html (report.json, report.txt and the plots beside it) is in {out}")
    _say_time(began)


def _evaluate(command: str, words: list[str]) -> None:
    default, began, line = EvaluateConfig(), time.monotonic(), [command, *words]
    if words and not words[0].startswith("-"):
        default, words = of_run(Path(words[0])), words[1:]
    given, words = read_common(words, out="")
    if given.config:
        default = read_preset(given.config, EvaluateConfig, default)
    if _helped(command, given, default, EVALUATING, EVALUATE):
        return
    config = read_settings(default, words, command="robust-plugin evaluate", short=_SHORT)
    hide_progress(given.quiet)
    if config.checkpoint == EvaluateConfig().checkpoint and not config.checkpoint.exists():
        raise ValueError(
            "evaluate what? Give a run folder, or --model and --checkpoint of a network."
        )
    out = Path(given.out) if given.out else None
    if given.dry_run:
        print(dry_evaluation(config, out, before=default))
        return
    writes = _writing_to(out) if out is not None and out.suffix != ".json" else nullcontext()
    with writes, processes() as first:
        said = f"robust-plugin {shlex.join(line)}"
        found = evaluate_network(
            config, out, before=default, progress=RunProgress({}), command=said
        )
        if first:
            print(found)
            if out is not None:
                print(f"\nall of it is in {out}")
            _say_time(began)


def _channels(command: str, words: list[str]) -> None:
    if {"-h", "--help", "--help-all"} & set(words):
        print(CHANNELS, end="")
        return
    if not words:
        raise ValueError("channels of what? Give the folders of finished runs.")
    if options := [word for word in words if word.startswith("-")]:
        raise ValueError(f"unknown option {options[0]}; channels takes folders of runs alone.")
    for folder in words:
        run = finished_run(Path(folder))
        with _writing_to(run.folder):
            print(f"{folder}\n{before_after(run)}\n")
            print(page_or_reason(run, method=recipe_of(run)))


def _list(command: str, words: list[str]) -> None:
    if {"-h", "--help", "--help-all"} & set(words):
        print(LIST, end="")
        return
    if words:
        raise ValueError(f"list takes no words, and got {' '.join(words)!r}.")
    print(listing())


COMMANDS: dict[str, Callable[[str, list[str]], None]] = {
    **dict.fromkeys(("gradual", "magnitude", "hydra", "harp"), _recipe),
    "compare": _compare,
    "evaluate": _evaluate,
    "channels": _channels,
    "list": _list,
}


def _helped(
    command: str, given: Common, begun: Any, groups: Groups, about: str, *, preset: str = ""
) -> bool:
    """Print the help of a command if it is asked for, and return whether it is."""
    if given.help == "none":
        return False
    common = common_options(command, config=given.config or preset, out=given.out)
    run = " [RUN]" * (command == "evaluate")
    usage = f"robust-plugin {command}{run} {' '.join(f'[{name}]' for name in list(common)[:4])}"
    usage += " [OPTIONS]"
    if given.help == "all":
        short = _SHORT if command == "evaluate" else {}
        print(full_help(begun, common, usage=usage, about=about, short=short))
    else:
        print(short_help(begun, groups, common, usage=usage, about=about))
    return True


def _writing_to(folder: Path) -> AbstractContextManager[None]:
    """Return the lock of a folder; torchrun's other processes belong to the first, which locks."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give --out a folder.")
    return locked(folder) if _rank() == 0 else nullcontext()


def _preset_for(command: str, words: list[str]) -> str:
    """Return the name of the preset that a recipe takes without --config.

    It is that of the user's own images if ``--data.name`` names such data, else that of digits.
    """
    name = ""
    for word, after in zip(words, [*words[1:], ""], strict=False):
        option, _, value = word.partition("=")
        name = (value or after) if option == "--data.name" else name
    own = name in ("folder", "table", "huggingface") or ":" in name
    return f"{command}/{'images' if own else 'digits'}"


def _say_preset(command: str, preset: str, *, given: bool) -> None:
    """Print one line about a preset that the user may not expect.

    Without --config, the user should know the preset, because its settings fit only one data set.
    A preset of another recipe may be a slip. magnitude takes such presets on purpose, as the
    baseline of that recipe.

    Args:
        command: the command that runs.
        preset: name of the preset, or path to a file.
        given: whether --config names the preset.
    """
    recipe = "" if Path(preset).is_file() else preset.partition("/")[0]
    if not given:
        said = f"no --config: settings that are not given are those of {preset}"
    elif recipe in RECIPES and command not in (recipe, "magnitude"):
        said = f"{preset} is a preset of {recipe}, and {command} runs with its settings"
    else:
        return
    if _rank() == 0 and shows_progress():
        print(f"{said}; robust-plugin list shows other presets", file=sys.stderr)


def _say_time(began: float) -> None:
    """Print how long the command has taken, with training, evaluation and reports."""
    if shows_progress():
        print(f"finished in {clock(time.monotonic() - began)}", file=sys.stderr)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _kept(folder: Path) -> dict[str, list[int]]:
    """Return [kept, all] weights or channels of each layer by name, from a run's report.json."""
    kept: dict[str, list[int]] = json.loads((folder / "report.json").read_text())["kept"]
    return kept
