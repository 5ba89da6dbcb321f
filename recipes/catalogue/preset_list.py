"""The list of presets, with the densities that papers report and the suffixes of preset names."""

from __future__ import annotations

from collections.abc import Iterator

from robust_plugin.recipes.catalogue.published import published_densities
from robust_plugin.recipes.config.presets import preset_layers, preset_names, variants
from robust_plugin.recipes.config.read import read_preset
from robust_plugin.recipes.papers.registry import RECIPES

# magnitude also takes the presets of these commands, since it is their baseline.
_MAGNITUDE_TAKES = ("hydra", "harp")
_GRADUAL = (
    "  published for it: nothing; a run is set beside the figures of magnitude, hydra and harp"
)


def listing() -> str:
    """Return one line per preset, grouped by command, in plain text of at most 100 columns."""
    names = preset_names()
    lines = [
        "robust-plugin COMMAND --config PRESET [--density D]",
        "Numbers are what is kept, in %, where there are published figures to set a run beside.",
    ]
    for command in dict.fromkeys([*RECIPES, *(name.partition("/")[0] for name in names)]):
        own = [name for name in names if name.startswith(f"{command}/")]
        if own:
            width = max(map(len, own))
            lines += ["", command, *(_line(command, name, width) for name in own)]
            if command == "gradual":
                lines.append(_GRADUAL)
            lines += _suffixes(command, width)
    return "\n".join(lines)


def published_presets(command: str) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the name of each preset for which papers report numbers, and the densities of these.

    Names with the suffix ``-channels`` are included if papers report numbers for channels. No other
    suffix has published numbers of its own.

    Args:
        command: gradual, magnitude, hydra or harp; magnitude also takes the presets of hydra and
            harp.
    """
    commands = {command, *(_MAGNITUDE_TAKES if command == "magnitude" else ())}
    for name in preset_names():
        if name.partition("/")[0] not in commands:
            continue
        for each in [
            name,
            *(f"{name}-{v.name}" for v in variants().values() if v.axis == "structure"),
        ]:
            if found := _densities(command, each):
                yield each, found


def _densities(command: str, name: str) -> tuple[float, ...]:
    """Return the densities for which papers report numbers for a preset, the largest first.

    Args:
        command: gradual, magnitude, hydra or harp.
        name: name of the preset.
    """
    kind = RECIPES[command].config
    try:
        return published_densities(command, read_preset(name, kind))
    except ValueError:  # magnitude has not all settings of a preset of hydra or harp
        return ()


def _line(command: str, name: str, width: int) -> str:
    """Return the line of a preset: name, published densities in %, and description.

    Args:
        command: command that the line is listed under.
        name: name of the preset.
        width: width of the column of names, in characters.
    """
    about = preset_layers(name)[-1].about
    if command not in RECIPES:
        return f"  {name:<{width}}  {about}"
    return f"  {name:<{width}}  {_shown(_densities(command, name)):<8}  {about}".rstrip()


def _shown(densities: tuple[float, ...]) -> str:
    """Return densities in % as text, separated by commas."""
    return ", ".join(f"{100 * density:g}" for density in densities)


def _suffixes(command: str, width: int) -> Iterator[str]:
    """Yield the lines below the presets of a command.

    They list the suffixes that preset names may have, and the other names that the command takes
    and for which papers report numbers.

    Args:
        command: command that the lines are listed under.
        width: width of the column of names, in characters.
    """
    suffixes = [each for each in variants().values() if command in each.commands]
    if not suffixes:
        return
    yield "  suffixes of preset names, one of each kind:"
    yield from (f"    {each.axis:<10}  -{each.name:<11}  {each.about}" for each in suffixes)
    listed = [name for name in preset_names() if name.startswith(f"{command}/")]
    others = [(name, found) for name, found in published_presets(command) if name not in listed]
    if others:
        takes = f"; it takes all of {' and '.join(_MAGNITUDE_TAKES)} as their baseline"
        yield f"  other names with published figures{takes if command == 'magnitude' else ''}:"
        yield from (f"    {name:<{width}}  {_shown(found)}" for name, found in others)
