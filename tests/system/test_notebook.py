"""In a notebook: a short repr of every value that a user holds, tables, and names to complete."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import robust_plugin
from robust_plugin import (
    IBP,
    PGD,
    Budget,
    Certificates,
    Comparison,
    Cubic,
    Free,
    Geometric,
    GradualPruner,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    MinimumNorm,
    Normalize,
    Progress,
    Ramp,
    Report,
    Rounds,
    SecurityCurve,
    Smoothed,
    ThreatModel,
    Verification,
    Verifier,
    certified,
    checkpoint,
    ibp_margins,
    mixtrain,
    pgd,
    save_compressed,
    smoothadv,
    sparsity,
    weight_groups,
)
from robust_plugin.evaluation import Obfuscation
from robust_plugin.evaluation.obfuscation_verdict import Check
from robust_plugin.export.csr import LayerTiming, SparseReport
from robust_plugin.runtime import Fingerprint, Journal

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in (ROOT / "robust_plugin").glob("*/__init__.py"))
ADAPTERS = ["autoattack", "auto_lirpa", "onnx", "torch_pruning", "torchattacks"]
THREAT = ThreatModel("L2", eps="8/255", low=-0.123456789, high=1.123456789)
LINF = ThreatModel("Linf", eps="8/255", low=-0.123456789, high=1.123456789)
N = 10_000


def deep(layers: int = 60) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(12, 12) for _ in range(layers)])


def report() -> Report:
    flags = tuple(i % 3 > 0 for i in range(N))
    attacks = [f"an attack with rather many words, number {i}" for i in range(7)]
    return Report(
        tuple(i % 10 for i in range(N)),
        {"clean": flags, **dict.fromkeys(attacks, flags)},
        dict.fromkeys(attacks, THREAT),
        certified=flags,
        certified_threat=THREAT,
        certifier="IBP",
        verdicts=("verified by IBP",) * N,
        distances={attacks[0]: (0.1,) * N},
        findings=("a <finding> & a long sentence. " * 30,),
    )


def verification() -> Verification:
    words = [f"a prover with a long name, number {i % 50}" for i in range(N)]
    return Verification(("verified",) * N, tuple(words), torch.rand(N), torch.rand(N, 9), THREAT)


def with_pruner(folder: Path) -> dict[str, Any]:
    model = deep()
    pruner = HarpPruner(model, density=0.1)
    counted = sparsity(model)
    file = folder / f"{'checkpoint' * 20}.safetensors"
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    checkpoint.save(file, model=model, pruner=pruner, optimizer=optimizer)
    return {
        "HarpPruner": pruner,
        "Budget": pruner.budget,
        "PatternBudget": HydraPruner(deep(), pattern="2:4").budget,
        "the groups": pruner.groups[0],
        "GroupMask": pruner.masks[0],
        "MaskedWeight": model[0].pruner_masks[0],
        "RateControl": pruner.control,
        "PhaseSteps": pruner.steps,
        "Sparsity": counted,
        "LayerSparsity": counted.layers[0],
        "Checkpoint": checkpoint.load(file),
        "HydraPruner": HydraPruner(deep(), density=0.1),
        "MagnitudePruner": MagnitudePruner(deep(), density=0.1),
        "GradualPruner": GradualPruner(deep(), density=0.1),
        "CompressedFile": save_compressed(folder / f"{'model' * 40}.safetensors", deep()),
        "Member": weight_groups(deep())[0].members[0],
        "Group": weight_groups(deep())[0],
        "Journal": Journal(folder / "journal", {}),
    }


def of_adapters() -> dict[str, Any]:
    from robust_plugin.adapters.auto_lirpa import LiRPA, proof_methods
    from robust_plugin.adapters.autoattack import AutoAttack
    from robust_plugin.adapters.onnx import OnnxFile
    from robust_plugin.adapters.torch_pruning import (
        LearnedPruner,
        channel_groups,
        learned_importance,
        remove_channels,
    )
    from robust_plugin.adapters.torchattacks import torchattack

    x, head = torch.rand(2, 3, 8, 8), nn.Linear(1024, 4)
    model = nn.Sequential(
        *[layer for _ in range(5) for layer in (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1))],
        nn.Flatten(),
        nn.Linear(192, 4),
    )
    wide = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Flatten(), head)
    blocks = channel_groups(wide, x)
    groups = channel_groups(model, x)
    pruner = MagnitudePruner(model, density=0.5, budget="channels", groups=groups)
    removed = remove_channels(pruner)
    pruner.finalize()
    return {
        "Groups": groups,
        "a group of channels": groups[0],
        "BlockBudget": MagnitudePruner(wide, density=0.9, groups=blocks, round_to=4).budget,
        "Removed": removed,
        "Ranking": learned_importance(pruner),
        "LearnedPruner": LearnedPruner(model, x, pruner),
        "AutoAttack": AutoAttack(LINF, seed=0),
        "LiRPA": LiRPA(LINF),
        "Verifier": Verifier(proof_methods(LINF), seconds=3.5),
        "Certified by CROWN-IBP": certified(LINF, bounds=LiRPA(LINF).bounds),
        "TorchAttack": torchattack("PGD", LINF, seed=0),
        "OnnxFile": OnnxFile(Path("model.onnx"), 1, 0.1, (1, 2, 4)),
    }


def plain_values() -> dict[str, Any]:
    distances = tuple(i / N for i in range(N - 1)) + (math.inf,)
    timing = LayerTiming("layer", 1, 10, 0.1, 0.05, True, "2.0x")
    return {
        "ThreatModel": THREAT,
        "Normalize": Normalize([0.5] * 3, [0.5] * 3),
        "PGD": pgd(LINF, restarts=5),
        "MinimumNorm": MinimumNorm(THREAT),
        "IBP": IBP(LINF),
        "Smoothed": Smoothed(0.25),
        "Report": report(),
        "Verification": verification(),
        "Certificates": Certificates(torch.ones(N), torch.rand(N), torch.ones(N)),
        "SecurityCurve": SecurityCurve("Linf", distances),
        "Comparison": Comparison("clean", "a", "b", 70, 12, 2, 16),
        "Obfuscation": Obfuscation((Check("it holds & holds", True, "<10 %" * 20),) * 50, 100),
        "SparseReport": SparseReport((timing,) * 60, 0.2, 0.1, 1),
        "Progress": Progress("AutoAttack: apgd-ce", 0, 100, "points"),
        "Fingerprint": Fingerprint(deep()),
        "Certified": certified(LINF, bounds=ibp_margins),
        "MixTrain": mixtrain(LINF, bounds=ibp_margins),
        "SmoothAdv": smoothadv(THREAT, sigma=0.25),
        "Free": Free(LINF),
        "Ramp": Ramp(),
        "Geometric": Geometric(until=0.5),
        "Cubic": Cubic(),
        "Rounds": Rounds(4),
    }


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return plain_values() | with_pruner(tmp_path_factory.mktemp("files")) | of_adapters()


def test_the_repr_of_every_value_is_short_and_shows_no_tensor(values: dict[str, Any]) -> None:
    long = {
        name: repr(value)
        for name, value in values.items()
        if len(repr(value)) >= 400 or "tensor(" in repr(value)
    }
    assert long == {}


def test_every_public_class_is_among_the_values(values: dict[str, Any]) -> None:
    # Protocols, classes of warnings, and torch's own way to show a module that contains a model.
    without = {"Objective", "Prover", "NotFiniteGradient", "SuspectNetwork", "UnitBox"}
    kinds = {type(value) for value in values.values()}
    kinds |= {base for kind in kinds for base in kind.__mro__}
    public = {
        each
        for name in [*ROOMS, *(f"adapters.{adapter}" for adapter in ADAPTERS)]
        for each in names_of(importlib.import_module(f"robust_plugin.{name}")).values()
        if inspect.isclass(each) and each.__module__.startswith("robust_plugin")
    }
    assert {kind.__name__ for kind in public - kinds} <= without
    assert {PGD, Report, Budget} <= public  # the list is not empty


def test_a_repr_tells_the_result(values: dict[str, Any]) -> None:
    small = Report((0, 1), {"clean": (True, True), "PGD-10": (True, False)}, {"PGD-10": LINF})
    assert repr(small) == "Report(n=2: clean 100.0 %, PGD-10 50.0 %)"
    assert repr(values["Sparsity"]) == "Sparsity(60 weight tensors, kept 900 of 8,640: 10.42%)"
    assert repr(values["Group"]) == "Group('0.weight', 144 weights)"
    assert repr(values["Groups"]).startswith("Groups(10 groups: 0 (8), 1 (3), 2 (8)")
    assert repr(values["SecurityCurve"]) == "SecurityCurve(Linf, n=10000, median distance 0.5)"
    assert repr(values["Removed"]).startswith("Removed(10 groups, parameters ")


def test_tables_for_notebooks_hold_the_figures_of_the_text(values: dict[str, Any]) -> None:
    shown = {name: value for name, value in values.items() if hasattr(value, "_repr_html_")}
    assert set(shown) >= {
        *("Report", "Verification", "Certificates", "SecurityCurve", "Sparsity", "SparseReport"),
        *("Obfuscation", "Removed"),
    }
    for name, value in shown.items():
        html = value._repr_html_()
        ElementTree.fromstring(f"<div>{html}</div>")  # well formed, so everything is escaped
        assert "<table>" in html and "color" not in html and "<script" not in html, name
    rows = [row for row in cells(values["Report"]._repr_html_()) if row[0] == "clean"]
    low, high = (100 * end for end in values["Report"].interval("clean"))
    assert rows == [["clean", "66.7", f"{low:.1f} to {high:.1f}", "10000", "66.7", ""]]
    assert "a &lt;finding&gt; &amp; a long sentence" in values["Report"]._repr_html_()
    part = Report((0, 1), {"clean": (True, True), "PGD": (True,)}, {"PGD": LINF})._repr_html_()
    assert part.index("all 2 points") < part.index("the first 1 points") < part.rindex("<table>")
    assert ["verified by a prover with a long name, number 7", "200"] in cells(
        values["Verification"]._repr_html_()
    )
    last = cells(values["Sparsity"]._repr_html_())[-1]
    assert last[0] == "59.weight" and last[1] == "12x12"


def cells(html: str) -> list[list[str]]:
    root = ElementTree.fromstring(f"<div>{html}</div>")
    return [[cell.text or "" for cell in row] for row in root.iter("tr")]


def names_of(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


@pytest.mark.parametrize("name", [*ROOMS, *(f"adapters.{adapter}" for adapter in ADAPTERS)])
def test_completion_offers_public_names_alone(name: str) -> None:
    module = importlib.import_module(f"robust_plugin.{name}")
    assert dir(module) == sorted(module.__all__) and names_of(module)


def test_completion_of_the_package_is_its_public_names() -> None:
    offered = dir(robust_plugin)
    assert set(offered) == {*robust_plugin.__all__, "checkpoint", "__version__"}
    assert all(hasattr(robust_plugin, name) for name in offered)


def test_a_cell_that_ends_in_a_report_is_a_screen_not_a_book(
    cnn: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    found = robust_plugin.evaluate(cnn(), [batch] * 40, attacks=[pgd(LINF, steps=1)])
    assert found.n > 200 and len(repr(found)) < 100
