"""Tests of the documentation: examples in docstrings, code on pages, and the site itself."""

import ast
import contextlib
import doctest
import functools
import importlib
import importlib.util
import pkgutil
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib
import page_outputs
import pytest
import torch
from matplotlib import pyplot
from page_outputs import PageOutputs
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import robust_plugin
from robust_plugin import ThreatModel, evaluate, pgd
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.recipes.cli import main

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "robust_plugin": "robust_plugin",
    "robust_plugin.adapters": "adapters",
    "robust_plugin.recipes": "recipes",
}
MODULES = [
    *FOLDERS,
    *(
        module.name
        for package, folder in FOLDERS.items()
        for module in pkgutil.walk_packages([str(ROOT / folder)], f"{package}.")
    ),
]
# A room is a folder with a sign, the docstring of its __init__.py.
ROOMS = [name for name in MODULES if hasattr(importlib.import_module(name), "__path__")]
# Pages whose code is run.
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]

# A Python block is run unless the line above it says why not. A shell block is run only if the
# line above it says so.
_BLOCK = re.compile(
    r"(?P<above>[^\n]*)\n\n?```(?P<kind>python|sh)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"\*Not run by the tests: .+\*")
_RUN = "*Run by the tests:*"
# Whether there is the CUDA device that a block that needs one asks for.
_SUITABLE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


# --- examples in docstrings ---------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_and_every_public_name_is_there():
    finder = doctest.DocTestFinder()
    count = sum(
        len(test.examples)
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
    )
    assert len(MODULES) >= 18 and count >= 50
    assert all(hasattr(robust_plugin, name) for name in robust_plugin.__all__)
    assert len(set(robust_plugin.__all__)) == len(robust_plugin.__all__)


# --- code on pages ------------------------------------------------------------------------------


def blocks(text: str) -> list[re.Match[str]]:
    """Return the blocks of a page that are run."""
    found = []
    for match in _BLOCK.finditer(text):
        above = match["above"].strip()
        skipped = _NOT_RUN.fullmatch(above) and not ("CUDA" in above and _SUITABLE)
        if above == _RUN or (match["kind"] == "python" and not skipped):
            found.append(match)
    return found


def run_page(name: str, namespace: dict[str, Any]) -> None:
    """Run the blocks of a page in order, in one namespace and in the current folder."""
    page = ROOT / name
    text = page.read_text()
    outputs = PageOutputs(page, all_shown=name.startswith("docs/"))
    for block in blocks(text):
        kind, code = block["kind"], block["code"]
        line = text[: block.start("code")].count("\n")
        if kind == "python":
            # The blank lines give a traceback the line numbers of the page.
            run = functools.partial(run_python, "\n" * line + code, str(page), namespace)
        else:
            run = functools.partial(run_commands, code)
        outputs.run(kind, block.end() + 1, run, f"{name}:{line}")
    outputs.close()


def run_python(code: str, page: str, namespace: dict[str, Any]) -> None:
    tree = Placeholders().visit(ast.parse(code, filename=page))
    exec(compile(ast.fix_missing_locations(tree), page, "exec"), namespace)


def run_commands(code: str) -> None:
    """Run the commands of a block; a backslash at the end of a line continues it."""
    for command in code.replace("\\\n", " ").strip().splitlines():
        program, *words = shlex.split(command)
        assert program == "robust-plugin", command
        assert main(words) == 0, command


class Placeholders(ast.NodeTransformer):
    """Replace a line ``...``, the reader's own loop, by ``your_loop(globals())``."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        if isinstance(node.value, ast.Constant) and node.value.value is ...:
            return ast.copy_location(ast.parse("your_loop(globals())").body[0], node)
        return node


def your_loop(names: dict[str, Any]) -> None:
    """Train with one pass over the batches: the loop behind the dots of the README."""
    model, optimizer = names["model"], names["phase"].optimizer
    for x, y in names["loader"]:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def readers_own() -> dict[str, Any]:
    """Return what the README assumes: a network, points, and a report to compare with."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 1, 8, 8, generator=generator)
    y = torch.arange(16) % 10
    loader = [(x[:8], y[:8]), (x[8:], y[8:])]
    model, threat = build(), ThreatModel("Linf", eps="8/255")
    return {
        "__name__": "page",
        "your_loop": your_loop,
        "build": build,
        "model": model,
        "dense": build(),
        "x": x,
        "y": y,
        "loader": loader,
        "test_loader": loader,
        "epochs": 2,
        "other": evaluate(build(), loader, attacks=[AutoAttack(threat, seed=0), pgd(threat)]),
    }


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Run a page in an empty folder, and forget the modules that it imported from there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith((str(tmp_path), "my_")):
            del sys.modules[name]


@contextlib.contextmanager
def drawing():
    """Within the context, pictures keep their words as text and do not depend on the day."""
    settings = {"backend": "agg", "svg.fonttype": "none", "svg.hashsalt": "docs"}
    with matplotlib.rc_context(settings), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "0")
        yield
        pyplot.close("all")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if "tutorial" in n else ()) for n in PAGES]
)
def test_code_on_pages(name, in_a_folder, capsys):
    torch.manual_seed(0)
    with drawing():
        run_page(name, readers_own() if name == "README.md" else {"__name__": "page"})


def test_the_recipe_of_contributing_prunes_by_its_rule(in_a_folder, monkeypatch, capsys):
    """Its network keeps exactly the budget, and the largest weights over all layers."""
    from robust_plugin.recipes.config.read import build as settings_of
    from robust_plugin.recipes.papers import registry

    monkeypatch.setattr(registry, "RECIPES", dict(registry.RECIPES))
    names: dict[str, Any] = {"__name__": "page"}
    run_page("CONTRIBUTING.md", names)
    short = {"epochs": 1, "lr": 0.05}
    config = settings_of(
        names["GlobalConfig"],
        {
            "model": "digits-cnn",
            "pretrain": short,
            "finetune": short,
            "objective": {"steps": 1},
            "evaluation": {"steps": 1, "restarts": 1, "autoattack": 0, "curve": 0},
            "density": 0.02,
            "threads": 1,
        },
        where="test",
    )
    report = registry.execute("global", config, Path("run"))
    assert report.n == 400
    pruned = load_file("run/model.safetensors")
    dense = load_file("run/pretrain.best.safetensors")
    weights = {name: w for name, w in pruned.items() if w.dim() > 1}
    assert sum(int((w != 0).sum()) for w in weights.values()) == 1795  # of 89,632, layer by layer
    kept = torch.cat([dense[f"model/{n}"].abs()[w != 0] for n, w in weights.items()])
    cut = torch.cat([dense[f"model/{n}"].abs()[w == 0] for n, w in weights.items()])
    assert cut.max() <= kept.sort().values[5]  # rounding per layer moves at most one in each layer


def test_the_picture_of_the_readme_is_that_of_the_results(tmp_path):
    script = ROOT / "docs/pictures/accuracy_against_size.py"
    drawn = tmp_path / "drawn.svg"
    runpy.run_path(str(script))["draw"](drawn)
    # The lines of the data; letters may be drawn in another way by another matplotlib.
    now, shown = (
        [
            [float(number) for number in re.findall(r"[\d.]+", path)]
            for path in re.findall(r'<path d="([^"]*)" clip-path', file.read_text())
        ]
        for file in (drawn, script.with_suffix(".svg"))
    )
    assert len(now) >= 6 and sum(map(len, now)) > 60
    for ours, theirs in zip(now, shown, strict=True):
        assert ours == pytest.approx(theirs, abs=1.0)  # points of a picture of 260 by 460


def test_what_is_skipped_says_why():
    ran, written = 0, 0
    for name in PAGES:
        text = (ROOT / name).read_text()
        ran += sum(block["kind"] == "python" for block in blocks(text))
        written += text.count("\n```python\n")
        assert text.count("\n```python\n") == len(
            [m for m in _BLOCK.finditer(text) if m["kind"] == "python"]
        )
    assert written - 2 <= ran <= written and ran >= 20


def test_every_block_names_its_language():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        fences = re.findall(r"^```(.*)$", page.read_text(), re.M)
        assert len(fences) % 2 == 0 and all(fences[::2]) and not any(fences[1::2]), page


def page_with(tmp_path, output: str) -> PageOutputs:
    page = tmp_path / "page.md"
    page.write_text("```python\nsay()\n```\n" + output)
    return PageOutputs(page)


def shown(tmp_path, output: str, printed: str) -> None:
    """Run an example that prints something, on a page that shows an output."""
    outputs = page_with(tmp_path, output)
    outputs.run("python", len("```python\nsay()\n```\n"), lambda: print(printed), "page")
    outputs.close()


def test_outputs_are_compared_by_words(tmp_path, monkeypatch):
    monkeypatch.setattr(page_outputs, "UPDATE", False)
    below = "\n```text\nclean   98.5 [90, 99]  1,234 points in 2.5 ms\nworst  7\n```\n"
    shown(tmp_path, below, "clean  100.0 [9, 100]  12 points in 3 s\nworst  12")
    for printed in (
        "clean  98.5 [90, 99]  1,234 points in 2.5 ms",  # a row less
        "clean  98.5 [90, 99]  1,234 points in 2.5 ms\nfinding  7",  # another word
        "clean  98.5 (90, 99)  1,234 points in 2.5 ms\nworst  7",  # another layout
        "",
    ):
        with pytest.raises(AssertionError, match="not that of this run"):
            shown(tmp_path, below, printed)
    with pytest.raises(AssertionError, match="no output is below it"):
        shown(tmp_path, "\nText.\n", "clean 98.5")
    varying = "\n*The output differs from run to run, because times vary:*\n" + below
    shown(tmp_path, varying, "clean  slower\nworst  12")
    with pytest.raises(AssertionError, match="not that of this run"):
        shown(tmp_path, varying, "clean  slower")


def test_outputs_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(page_outputs, "UPDATE", True)
    for below in ("\nText.\n", "\n```text\nold\n```\n\nText.\n"):
        shown(tmp_path, below, f"new in {Path.cwd()}/runs  ")
        text = (tmp_path / "page.md").read_text()
        assert text == "```python\nsay()\n```\n\n```text\nnew in runs\n```\n\nText.\n"


# --- the page on the architecture ---------------------------------------------------------------


def tables_by_heading(text: str) -> dict[str, dict[str, list[str]]]:
    """Return heading -> first cell -> all cells of each table row whose first cell is code."""
    found: dict[str, dict[str, list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found.setdefault(heading, {})[cells[0].strip("`")] = cells
    return found


def test_the_architecture_page_names_every_file():
    tables = tables_by_heading((ROOT / "docs/architecture.md").read_text())
    for floor in FOLDERS.values():
        for folder in [
            ROOT / floor,
            *(sign.parent for sign in (ROOT / floor).glob("*/__init__.py")),
        ]:
            name = folder.relative_to(ROOT).as_posix()
            name = f"{name}, beside its rooms" if name in ("robust_plugin", "recipes") else name
            there = {path.name for path in folder.glob("*.*") if path.is_file()}
            assert set(tables[name]) == there - {"__init__.py", "py.typed"}, name


def test_the_architecture_page_has_the_rooms_of_the_table():
    spec = importlib.util.spec_from_file_location("arrows", ROOT / "tests/system/test_arrows.py")
    arrows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arrows)
    tables = tables_by_heading((ROOT / "docs/architecture.md").read_text())
    for floor, heading in (
        ("robust_plugin", "Core: `robust_plugin`"),
        ("recipes", "Recipes: `recipes`"),
    ):
        uses = {room: cells[3] for room, cells in tables[heading].items()}
        shown = {room: set(text.split(", ")) - {"none"} for room, text in uses.items()}
        assert shown == arrows.ROOMS[floor]
        firsts = {room: cells[2].strip("`") for room, cells in tables[heading].items()}
        for room, first in firsts.items():
            assert (ROOT / floor / room / first).is_file() or (ROOT / floor / first).is_file(), room


# --- the site -----------------------------------------------------------------------------------


def test_every_room_is_on_one_page_of_the_api():
    text = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    there = re.findall(r"^\.\. automodule:: (\S+)$", text, re.M)
    assert len(there) == len(set(there))
    assert set(ROOMS) - {"robust_plugin"} <= set(there)
