"""Pages of made-up results, to look at in a browser and to read in tests."""

import math
from functools import cache

import torch

from robust_plugin import Report, SecurityCurve, ThreatModel
from robust_plugin.evaluation.obfuscation_verdict import Check, Obfuscation
from robust_plugin.recipes.compare.cells import Cell
from robust_plugin.recipes.compare.page import BestNetwork, comparison_page
from robust_plugin.recipes.compare.security_curves import shown_curves
from robust_plugin.recipes.evaluate.network_facts import NetworkFacts
from robust_plugin.recipes.evaluate.page import page
from robust_plugin.recipes.pages.run_facts import Example, UnderAttack
from robust_plugin.recipes.pages.security_curve import CurveUnderPGD

CLASSES = ("cat <1>", "a name of a class that is much too long for any plot", "dog")
BALL = ThreatModel("Linf", 0.1)
ROWS = ("LWM uniform", "iterative magnitude", "HYDRA at LAMP, scores lr 0.1", "HARP held")
LONG = "a_very_long_name_of_a_layer_that_nobody_would_like_to_read.weight"


def report(clean: int, robust: int, n: int = 60, *, more: bool = False) -> Report:
    """So many points right, of three classes in turn; with ``more``, all that a report can have."""

    def flags(right: int, size: int = n) -> tuple[bool, ...]:
        return tuple(i < right for i in range(size))

    rows = {"clean": flags(clean), "PGD-10": flags(robust)}
    labels = tuple(i % 3 for i in range(n))
    if not more:
        return Report(labels, rows, {"PGD-10": BALL}, versions={"torch": "2.9"})
    few = flags(robust // 2, n // 2)
    distances = tuple(0.0 if i >= clean else 0.3 / (1 + i) for i in range(n - 1))
    return Report(
        labels,
        {**rows, "FAB": flags(robust), "AutoAttack": few},
        {"PGD-10": BALL, "FAB": BALL, "AutoAttack": ThreatModel("Linf", 0.2)},
        ("the network is <strange>",),
        certified=few,
        certified_threat=BALL,
        distances={"FAB": (*distances, math.inf)},
        certifier="IBP",
        verdicts=tuple("verified by IBP" if each else "unknown" for each in few),
        versions={"torch": "2.9", "pyautoattack": "0.2"},
    )


def security_curve(*standing: int) -> CurveUnderPGD:
    """So many of 60 points right: without an attack, at 1/2, 1, 2 and 4 eps, in the whole box."""
    radii = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)
    distances = [math.inf] * 60
    for radius, stand in zip(reversed(radii), reversed(standing), strict=True):
        distances[stand:] = [radius] * (60 - stand)
    return CurveUnderPGD("PGD-10", 0.1, 1.0, SecurityCurve("Linf", tuple(distances)))


def examples(channels: int = 3) -> tuple[Example, ...]:
    """Two points, one of them fooled."""
    clean = torch.linspace(0, 1, channels * 64).reshape(channels, 8, 8)
    return tuple(
        Example(i, i, clean, (clean + 0.1).clamp(max=1), (i, answer), (0.9, 0.6))
        for i, answer in enumerate((2, 1))
    )


def attacked() -> UnderAttack:
    """Six points, of which the attack fools two of one class."""
    return UnderAttack("PGD-10", (0, 1, 2, 0, 1, 2), (0, 1, 2, 0, 1, 1), (2, 1, 2, 2, 1, 1))


@cache
def evaluation_html() -> str:
    """The page of an evaluation that has everything."""
    checks = (
        Check("the loss rises", True, "0.1, then 0.9"),
        Check("it falls", False, "no " * 40),
        Check("other", None, ""),
    )
    network = NetworkFacts((50, 1000), attacked(), examples(), CLASSES)
    return page(
        report(50, 30, more=True),
        title="Robustness of net <1>",
        about="All points.",
        network=network,
        checks=Obfuscation(checks, 60),
        radii=("8/255", "0.1"),
        settings={"seed": 3, "model": "package.module:a_function_with_a_long_name" * 3},
        command="robust-plugin evaluate runs/one --n 60 " + "--an-option-that-is-long value " * 5,
    )


def comparison_cells(seeds: int = 1) -> list[Cell]:
    """The dense network and four methods at two densities."""

    def reports(robust: int) -> list[Report]:
        return [report(50, robust + seed) for seed in range(seeds)]

    pruned = [
        Cell(row, density, 0.1, reports(10 + 8 * place + int(100 * density)), 0.2 + 0.1 * place)
        for density in (0.05, 0.01)
        for place, row in enumerate(ROWS)
    ]
    return [Cell("dense", 1.0, None, reports(45), None), *pruned]


@cache
def comparison_html(seeds: int = 1) -> str:
    """The page of a comparison that has everything."""
    cells = comparison_cells(seeds)
    kept = {
        row: {"conv1.weight": (50, 1000), LONG: (52, 1000), "fc.weight": (9 * place, 100)}
        for place, row in enumerate(ROWS)
    }
    curves = {row: [0.1 * place, 0.2, 0.5] for place, row in enumerate(ROWS)}
    security = {
        row: [security_curve(55, 50 - seed, 30 + place, 12, 9, 0) for seed in range(seeds)]
        for place, row in enumerate(("dense", *ROWS))
    }
    security["HARP held"] = [security_curve(55, 50, 45, 30, 20, 5)] * seeds  # which looks wrong
    return comparison_page(
        cells,
        title="Comparison: mine",
        data="digits",
        threat=str(BALL),
        settings={"densities": [0.05, 0.01]},
        kept={"5 % kept": kept, "1 % kept": kept},
        curves={"5 % kept": curves, "1 % kept": curves},
        security=shown_curves(security, 0.01),
        best=BestNetwork(cells[4], attacked(), examples(1), CLASSES),
        command="robust-plugin compare --out runs/mine",
        versions={"torch": "2.9"},
    )
