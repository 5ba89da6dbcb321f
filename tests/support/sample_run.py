"""The facts of a made-up run, for the tests of its page."""

from dataclasses import replace

import torch
from sample_pages import BALL, CLASSES, LONG, attacked, examples, report, security_curve

from robust_plugin.recipes.pages.run_facts import Epoch, Layer, Mask, Network, RunFacts


def epochs() -> tuple[Epoch, ...]:
    """Eight epochs of three stages; two layers keep different shares."""
    dense = [Epoch("pretrain", 2.0 - 0.4 * i, 0.2 * i, 0.1 * i, 1.0, {}) for i in range(4)]
    shares = {"conv.weight": 0.5, LONG: 0.02}
    pruned = [
        Epoch("prune", 0.9, 0.6, 0.4, 0.2, shares),
        Epoch("prune", 0.7, 0.7, 0.5, 0.1, shares),
    ]
    return (*dense, *pruned, *(replace(each, stage="finetune") for each in pruned))


def run_facts() -> RunFacts:
    """A run that has everything."""
    dense, pruned = report(50, 30), report(48, 40)
    conv = torch.zeros(16, 3, 3, 3, dtype=torch.bool)
    conv[0, 0, 0, 0] = True
    return RunFacts(
        method="harp",
        model="package.module:net <1>",
        data="own images",
        objective="adversarial",
        threat=str(BALL),
        structure="weights",
        density=0.1,
        budget="params",
        validation="PGD-10",
        report=report(48, 40, more=True),
        dense=Network(90_000, 500_000, 360_000, {1: 0.2, 64: 1.5}, dense),
        pruned=Network(9_000, 60_000, 40_000, {1: 0.2, 64: 1.4}, pruned),
        comparisons=tuple(
            pruned.compare(dense, row, name="pruned", other_name="dense", extra_epochs=4)
            for row in dense.rows
        ),
        curves={
            "dense": security_curve(50, 45, 30, 12, 2, 0),
            "harp": security_curve(52, 50, 40, 30, 20, 5),
        },
        epochs=epochs(),
        layers=(Layer("conv.weight", 216, 432), Layer(LONG, 20, 1000)),
        masks=(Mask("conv.weight", conv), Mask(LONG, torch.eye(300) > 0)),
        examples=examples(),
        attacked=attacked(),
        class_names=CLASSES,
        findings=("the stage prune <failed>",),
        smoothing="radius  certified\n   0.1       50.0\n",
        device="cpu, 1 CPU thread",
        command="robust-plugin harp " + "--an-option-that-is-long value " * 5,
        settings={"seed": 3, "model": "a_function_with_a_long_name" * 9},
        versions={"torch": "2.9"},
    )
