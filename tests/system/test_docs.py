"""Tests of the documentation: examples in docstrings, code on pages, and the site itself."""

import ast
import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robust_plugin
from robust_plugin import Pruner, ThreatModel, evaluate, pgd
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
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

# A Python block is run unless the line above it says why not. A shell block is run only if the
# line above it says so.
_BLOCK = re.compile(
    r"(?P<above>[^\n]*)\n\n?```(?P<kind>python|sh)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"\*Not run by the tests: .+\*")
_RUN = "*Run by the tests:*"


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


def blocks(text: str) -> list[tuple[str, str, int]]:
    """Return the blocks of a page that are run, as (kind, code, line number)."""
    found = []
    for match in _BLOCK.finditer(text):
        above, kind, code = match["above"].strip(), match["kind"], match["code"]
        if (kind == "python" and not _NOT_RUN.fullmatch(above)) or above == _RUN:
            found.append((kind, code, text[: match.start("code")].count("\n")))
    return found


def run_page(name: str, namespace: dict[str, Any]) -> None:
    """Run the blocks of a page in order, in one namespace and in the current folder."""
    page = ROOT / name
    for kind, code, line in blocks(page.read_text()):
        if kind == "sh":
            for command in code.strip().splitlines():
                program, *words = shlex.split(command)
                assert program == "robust-plugin", f"{name}:{line}: {program}"
                assert main(words) == 0, f"{name}:{line}: {command}"
            continue
        # The blank lines give a traceback the line numbers of the page.
        tree = Placeholders().visit(ast.parse("\n" * line + code, filename=str(page)))
        exec(compile(ast.fix_missing_locations(tree), str(page), "exec"), namespace)


class Placeholders(ast.NodeTransformer):
    """Replace a line ``...``, the reader's own loop, by ``your_loop(globals())``."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        if isinstance(node.value, ast.Constant) and node.value.value is ...:
            return ast.copy_location(ast.parse("your_loop(globals())").body[0], node)
        return node


def your_loop(names: dict[str, Any]) -> None:
    """Train the remaining phases with one pass each: the loop behind the dots of the README."""
    pruner: Pruner = names["pruner"]
    if pruner.phase == "attached":
        names["optimizer"] = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1, momentum=0.9)
        pruner.follow(names["optimizer"], epochs=1, steps_per_epoch=2)
        step(names)
    if pruner.phase == "prune":
        names["optimizer"] = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.01, momentum=0.9)
    step(names)


def step(names: dict[str, Any]) -> None:
    model, optimizer = names["model"], names["optimizer"]
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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if "tutorial" in n else ()) for n in PAGES]
)
def test_code_on_pages(name, in_a_folder, capsys):
    torch.manual_seed(0)
    run_page(name, readers_own() if name == "README.md" else {"__name__": "page"})


def test_what_is_skipped_says_why():
    ran, written = 0, 0
    for name in PAGES:
        text = (ROOT / name).read_text()
        ran += sum(kind == "python" for kind, _, _ in blocks(text))
        written += text.count("\n```python\n")
        assert text.count("\n```python\n") == len(
            [m for m in _BLOCK.finditer(text) if m["kind"] == "python"]
        )
    assert written - 2 <= ran <= written and ran >= 20


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


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="sphinx is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
