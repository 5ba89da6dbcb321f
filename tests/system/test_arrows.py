"""Who may import whom: floors, rooms and third-party libraries, each in one table below."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Arrows between floors point down only: recipes -> adapters -> robust_plugin -> torch.
FLOORS = {
    "robust_plugin": {"robust_plugin"},
    "adapters": {"robust_plugin"},  # and no other adapter
    "recipes": {"robust_plugin", "adapters", "recipes"},
}

# The rooms of each floor, and the rooms of the same floor that each may use beside itself. A single
# file beside the rooms counts as a room of its own.
ROOMS = {
    "robust_plugin": {
        "version": set(),
        "stats": {"runtime"},
        "threat": {"runtime"},
        "runtime": {"version"},
        "masks": {"runtime"},
        "budget": {"masks", "runtime"},
        "pruning": {"budget", "masks", "runtime"},
        "copies": {"masks", "runtime"},
        "channels": {"pruning", "budget", "copies", "masks", "runtime"},
        "attacks": {"copies", "masks", "runtime", "threat"},
        "certificates": {"attacks", "copies", "masks", "runtime", "stats", "threat"},
        "objectives": {"attacks", "certificates", "masks", "runtime", "threat"},
        "evaluation": {"attacks", "certificates", "masks", "runtime", "stats", "threat", "version"},
        "export": {"copies", "masks", "runtime"},
    },
    "recipes": {
        "runtime": set(),
        "config": {"runtime"},
        "data": {"config", "runtime"},
        "models": {"runtime"},
        "pages": set(),
        "training": {"config", "data", "models", "runtime"},
        "evaluate": {"training", "config", "data", "models", "pages", "runtime"},
        "papers": {"training", "evaluate", "config"},
        "compare": {"papers", "evaluate", "training", "config", "pages", "runtime"},
        "catalogue": {"papers", "config"},
        "dry": {
            *("papers", "evaluate", "compare", "catalogue", "training", "data", "config"),
            "runtime",
        },
        "commands": {
            *("papers", "evaluate", "compare", "catalogue", "dry"),
            *("training", "config", "pages", "runtime"),
        },
        "cli": {"commands", "training", "config", "runtime"},
    },
}

# Attacks, provers, pruners and exporters: each is imported in one adapter and nowhere else.
LIBRARIES = {
    "autoattack": {"autoattack", "pyautoattack"},
    "auto_lirpa": {"auto_LiRPA"},
    "foolbox": {"foolbox"},
    "lightning": {"lightning"},
    "onnx": {"onnx", "onnxruntime", "onnxscript"},
    "torch_pruning": {"torch_pruning"},
    "torchattacks": {"torchattacks"},
    "transformers": {"transformers"},
}
WRAPPED = set().union(*LIBRARIES.values())
# What else a floor may import; recipes may import anything that no adapter wraps.
OTHERS = {"robust_plugin": {"torch", "safetensors"}, "adapters": {"torch", "numpy"}}
# What the core may import inside functions, and in which rooms: bars and plots have one place each.
LAZY = {
    "scipy": set(ROOMS["robust_plugin"]),
    "tqdm": {"runtime"},
    "matplotlib": {"runtime"},
}


def imports(source: str, package: str) -> list[tuple[int, str]]:
    """Every module a file imports, absolute, wherever in the file and however written."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                up = ".".join(parts[: len(parts) - node.level + 1])
                base = f"{up}.{base}" if base else up
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = name or (node.func.id if isinstance(node.func, ast.Name) else "")
            if name in ("import_module", "__import__") and node.args:
                argument = node.args[0]
                # A name that is only known at run time could be anything.
                text = argument.value if isinstance(argument, ast.Constant) else "?"
                found.append((node.lineno, str(text)))
    return found


def lines_at_top(source: str) -> set[int]:
    """Line numbers of statements that run when the file is imported."""
    inner = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner |= set(range(node.lineno, node.end_lineno + 1))
    return set(range(1, source.count("\n") + 2)) - inner


def module_name(path: Path, root: Path) -> str:
    """The dotted name that a file is imported by."""
    first, *rest = path.relative_to(root).with_suffix("").parts
    rest = rest[:-1] if rest[-1] == "__init__" else rest
    return ".".join(["robust_plugin", *([] if first == "robust_plugin" else [first]), *rest])


def place(module: str) -> tuple[str, str]:
    """The floor and the room (or the adapter) of a dotted name of this project."""
    first, *rest = module.split(".")
    rest = rest if first == "robust_plugin" else [first, *rest]
    if rest and rest[0] in ("adapters", "recipes"):
        return rest[0], "".join(rest[1:2])
    return "robust_plugin", "".join(rest[:1])


def violations(root: Path) -> list[str]:
    """Everything that points the wrong way in a tree like ours."""
    found = []
    owners: dict[str, set[str]] = {}
    sources = {
        path: path.read_text()
        for floor in FLOORS
        for path in sorted((root / floor).rglob("*.py"))
        if "configs" not in path.parts
    }
    for path, source in sources.items():
        name = module_name(path, root)
        floor, room = place(name)
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        top = lines_at_top(source)
        for line, module in imports(source, package):
            here = f"{path.relative_to(root).as_posix()}:{line} imports {module}"
            first = module.partition(".")[0]
            if first in ("robust_plugin", "adapters", "recipes"):
                if not _may_use(floor, room, *place(module)):
                    found.append(here)
            elif first in sys.stdlib_module_names:
                continue
            elif floor == "robust_plugin":
                lazy = room in LAZY.get(first, set()) and line not in top
                if first not in OTHERS[floor] and not lazy:
                    found.append(here)
            elif floor == "adapters":
                if first not in OTHERS[floor] | LIBRARIES.get(room, set()):
                    found.append(here)
                if first in WRAPPED:
                    owners.setdefault(first, set()).add(room)
            elif first in WRAPPED:  # a recipe may load what its user names on the command line
                found.append(here)
    found += [
        f"{library} is imported in {sorted(rooms)}"
        for library, rooms in owners.items()
        if len(rooms) > 1
    ]
    return found + _cycle(sources, root)


def _may_use(floor: str, room: str, other_floor: str, other_room: str) -> bool:
    if floor != other_floor:
        return other_floor in FLOORS[floor]
    if room in ("", other_room):  # the sign of the floor, or a room within itself
        return True
    return floor in ROOMS and other_room in ROOMS[floor].get(room, set())


def _cycle(sources: dict[Path, str], root: Path) -> list[str]:
    """One cycle between files, if there is any: in functions and under TYPE_CHECKING too."""
    names = {module_name(path, root): path for path in sources}
    graph = {}
    for name, path in names.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        used = set()
        for _, module in imports(sources[path], package):
            used |= {each for each in (module, module.rpartition(".")[0]) if each in names}
        graph[name] = used - {name, "robust_plugin"} if path.stem != "__init__" else set()
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return [f"a cycle: {' -> '.join(error.args[1])}"]
    return []


def test_arrows_point_down():
    assert violations(ROOT) == []


def test_the_table_names_every_room():
    for floor, rooms in ROOMS.items():
        there = {
            path.stem
            for path in (ROOT / floor).iterdir()
            if (path / "__init__.py").is_file() or path.suffix == ".py"
        }
        assert there - {"__init__"} == set(rooms)
        list(graphlib.TopologicalSorter(rooms).static_order())  # the table itself has no cycle


GOOD = {
    "robust_plugin/budget/a.py": "import math\nimport torch\nfrom robust_plugin.masks.b import c\n"
    "from . import d\n"
    "from safetensors.torch import save_file\ndef f():\n    import scipy.stats\n",
    "robust_plugin/budget/d.py": "e = 1\n",
    "robust_plugin/masks/__init__.py": "from robust_plugin.masks.b import c\n",
    "robust_plugin/masks/b.py": "c = 1\n",
    "robust_plugin/runtime/plots.py": "def f():\n    from matplotlib import pyplot\n",
    "adapters/torchattacks.py": "import torchattacks\nfrom robust_plugin import pgd\n",
    "adapters/autoattack.py": "def f():\n    import pyautoattack\n",
    "adapters/auto_lirpa/certifier.py": "import auto_LiRPA\n"
    "from robust_plugin.adapters.auto_lirpa.shims import f\n",
    "adapters/auto_lirpa/shims.py": "f = 1\n",
    "recipes/papers/hydra.py": "import tqdm\nfrom robust_plugin.adapters import autoattack\n"
    "from robust_plugin.recipes.training.loop import train\nimport torchvision\n",
    "recipes/training/loop.py": "train = 1\n",
}
PLANTED = [
    # between floors
    ("robust_plugin/masks/x.py", "from robust_plugin.adapters import autoattack\n"),
    ("robust_plugin/masks/x.py", "from robust_plugin import recipes\n"),
    ("robust_plugin/masks/x.py", "from ..recipes.training import train\n"),
    ("robust_plugin/masks/x.py", "from .. import adapters\n"),
    ("robust_plugin/masks/x.py", "import robust_plugin.recipes.data.datasets\n"),
    ("robust_plugin/masks/x.py", "import adapters.autoattack\n"),
    ("adapters/foolbox.py", "from robust_plugin.recipes import data\n"),
    # between rooms
    ("robust_plugin/masks/x.py", "from robust_plugin.pruning.pruner import Pruner\n"),
    ("robust_plugin/masks/x.py", "from robust_plugin.pruning import Pruner\n"),
    ("robust_plugin/masks/x.py", "from robust_plugin import pruning\n"),
    ("robust_plugin/masks/x.py", "from ..budget import Budget\n"),
    ("robust_plugin/masks/x.py", "from robust_plugin import Pruner\n"),
    ("robust_plugin/masks/x.py", "def f():\n    import robust_plugin.pruning.pruner\n"),
    ("robust_plugin/masks/x.py", "if TYPE_CHECKING:\n    from robust_plugin import budget\n"),
    ("robust_plugin/threat/x.py", "from robust_plugin.masks.b import c\n"),
    ("robust_plugin/budget/x.py", "from robust_plugin.copies.fast import fast_copy\n"),
    ("recipes/training/x.py", "from robust_plugin.recipes.papers.hydra import hydra\n"),
    ("recipes/data/x.py", "def f():\n    from robust_plugin.recipes.training.run import Run\n"),
    ("recipes/config/x.py", "from ..training.run import Run\n"),
    # other libraries
    ("robust_plugin/masks/x.py", "import numpy as np\n"),
    ("robust_plugin/masks/x.py", "def f():\n    import tqdm\n"),
    ("robust_plugin/masks/x.py", "def f():\n    from matplotlib import pyplot\n"),
    ("robust_plugin/runtime/x.py", "import tqdm\n"),
    ("robust_plugin/masks/x.py", "import scipy.stats\n"),
    ("robust_plugin/masks/x.py", "if True:\n    from scipy import stats\n"),
    ("robust_plugin/masks/x.py", "import importlib\nimportlib.import_module('torchattacks')\n"),
    ("robust_plugin/masks/x.py", "import importlib\nimportlib.import_module('scipy'.lower())\n"),
    ("robust_plugin/masks/x.py", "__import__('torchvision')\n"),
    ("robust_plugin/deep/deeper/x.py", "import yaml\n"),
    ("adapters/foolbox.py", "import torchattacks\n"),
    ("adapters/foolbox.py", "from robust_plugin.adapters import torchattacks\n"),
    ("adapters/foolbox.py", "from robust_plugin.adapters.torchattacks import X\n"),
    ("adapters/foolbox.py", "from robust_plugin.adapters.auto_lirpa.shims import f\n"),
    ("adapters/auto_lirpa/x.py", "from robust_plugin.adapters.autoattack import f\n"),
    ("adapters/auto_lirpa/x.py", "import torchattacks\n"),
    ("adapters/foolbox.py", "from .torchattacks import X\n"),
    ("adapters/foolbox.py", "import tqdm\n"),
    ("adapters/new.py", "import torchattacks\n"),
    ("recipes/papers/x.py", "import torchattacks\n"),
    ("recipes/papers/x.py", "def f():\n    from auto_LiRPA import BoundedModule\n"),
    ("recipes/papers/x.py", "import importlib\nimportlib.import_module('pyautoattack')\n"),
]  # fmt: skip


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_good_tree_passes(tmp_path):
    plant(tmp_path, GOOD)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(("path", "source"), PLANTED)
def test_a_planted_import_is_caught(tmp_path, path, source):
    plant(tmp_path, GOOD)
    plant(tmp_path, {path: source})
    found = violations(tmp_path)
    assert any(line.startswith(f"{path}:") or Path(path).stem in line for line in found)


@pytest.mark.parametrize(
    "back",
    [
        "from robust_plugin.masks.b import c\n",
        "def f():\n    from robust_plugin.masks import b\n",
        "if TYPE_CHECKING:\n    from robust_plugin.masks.b import c\n",
    ],
)
def test_a_planted_cycle_is_caught(tmp_path, back):
    plant(tmp_path, GOOD)
    plant(tmp_path, {"robust_plugin/masks/b.py": "from robust_plugin.masks.x import y\nc = 1\n"})
    plant(tmp_path, {"robust_plugin/masks/x.py": f"{back}y = 1\n"})
    assert [line for line in violations(tmp_path) if line.startswith("a cycle")]


def test_the_core_imports_nothing_but_torch_and_safetensors():
    """In a process of its own: neither scipy nor any adapter's library comes along."""
    others = {"scipy", "torchvision", "tyro", "yaml", "sklearn", "matplotlib"}  # torch takes tqdm
    code = (
        "import sys, robust_plugin, robust_plugin.pruning.checkpoint\n"
        f"names = {sorted(WRAPPED | others)!r}\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- names --------------------------------------------------------------------------------------


def test_no_public_name_hides_a_module():
    """``from robust_plugin.masks import x`` gives the same thing whoever imported what before."""

    for floor in FLOORS:
        for sign in (ROOT / floor).rglob("__init__.py"):
            name = module_name(sign, ROOT)
            room = importlib.import_module(name)
            modules = {p.stem for p in sign.parent.iterdir() if p.suffix == ".py" or p.is_dir()}
            assert not modules & set(getattr(room, "__all__", ())), name


def test_every_sign_names_every_file():
    for floor in FLOORS:
        for sign in (ROOT / floor).glob("*/__init__.py"):
            text = ast.get_docstring(ast.parse(sign.read_text())) or ""
            files = {path.name for path in sign.parent.glob("*.py")} - {"__init__.py"}
            assert {f for f in files if f"``{f}``" not in text} == set(), sign


def test_every_module_has_a_test_file_of_its_name():
    missing = []
    for floor in FLOORS:
        tests = ROOT / "tests" / ("" if floor == "robust_plugin" else floor)
        for path in (ROOT / floor).rglob("*.py"):
            inside = path.relative_to(ROOT / floor)
            test = tests / inside.with_name(f"test_{path.name}")
            if path.name not in ("__init__.py", "version.py") and not test.is_file():
                missing.append(str(inside))
    assert missing == []
