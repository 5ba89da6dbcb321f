"""Arrows point down only: recipes -> adapters -> robust_plugin -> torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Attacks, provers, pruners and exporters: each is imported in one adapter and nowhere else.
LIBRARIES = {
    "autoattack": {"autoattack", "pyautoattack"},
    "auto_lirpa": {"auto_LiRPA"},
    "foolbox": {"foolbox"},
    "onnx": {"onnx", "onnxruntime", "onnxscript"},
    "torch_pruning": {"torch_pruning"},
    "torchattacks": {"torchattacks"},
}
WRAPPED = set().union(*LIBRARIES.values())


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


def violations(root: Path) -> list[str]:
    """Everything that points the wrong way in a tree like ours."""
    found = []
    owners: dict[str, set[str]] = {}
    for folder in ("robust_plugin", "adapters", "recipes"):
        package = folder if folder == "robust_plugin" else f"robust_plugin.{folder}"
        for path in sorted((root / folder).rglob("*.py")):
            source, top = path.read_text(), None
            for line, module in imports(source, package):
                here = f"{path.relative_to(root).as_posix()}:{line} imports {module}"
                first, *rest = module.split(".")
                layer = "core" if first == "robust_plugin" else None
                if first in ("adapters", "recipes"):
                    layer = first
                elif first == "robust_plugin" and rest and rest[0] in ("adapters", "recipes"):
                    layer = rest[0]
                standard = first in sys.stdlib_module_names
                if folder == "robust_plugin":
                    top = lines_at_top(source) if top is None else top
                    lazy = first == "scipy" and line not in top
                    fine = standard or layer == "core" or first in ("torch", "safetensors") or lazy
                elif folder == "adapters":
                    own = LIBRARIES.get(path.stem, set())
                    # A file may have companions that bear its name: auto_lirpa_shims. It knows
                    # them, and they know one another, but not it.
                    named = [name for name in LIBRARIES if path.stem.startswith(f"{name}_")]
                    companion = layer == "adapters" and "".join(rest[1:2]).startswith(
                        f"{named[0] if named else path.stem}_"
                    )
                    fine = standard or first in {"torch", "numpy"} | own or layer == "core"
                    fine = fine or companion
                    if first in WRAPPED:
                        owners.setdefault(first, set()).add(path.name)
                else:
                    # A recipe may load what its user names on the command line.
                    fine = first not in WRAPPED
                if not fine:
                    found.append(here)
    found += [
        f"{library} is imported in {sorted(files)}"
        for library, files in owners.items()
        if len(files) > 1
    ]
    return found


def test_arrows_point_down():
    assert violations(ROOT) == []


GOOD = {
    "robust_plugin/a.py": "import math\nimport torch\nfrom robust_plugin.b import c\n"
    "from . import b\n"
    "from safetensors.torch import save_file\ndef f():\n    import scipy.stats\n",
    "robust_plugin/b.py": "c = 1\n",
    "adapters/torchattacks.py": "import torchattacks\nfrom robust_plugin import pgd\n",
    "adapters/autoattack.py": "def f():\n    import pyautoattack\n",
    "adapters/auto_lirpa.py": "from robust_plugin.adapters.auto_lirpa_shims import f\n",
    "adapters/auto_lirpa_module.py": "from robust_plugin.adapters.auto_lirpa_shims import f\n",
    "recipes/hydra.py": "import tqdm\nfrom robust_plugin.adapters import autoattack\n"
    "from robust_plugin.recipes.training import train\nimport torchvision\n",
}
PLANTED = [
    ("robust_plugin/x.py", "from robust_plugin.adapters import autoattack\n"),
    ("robust_plugin/x.py", "from robust_plugin import recipes\n"),
    ("robust_plugin/x.py", "from .recipes.training import train\n"),
    ("robust_plugin/x.py", "from . import adapters\n"),
    ("robust_plugin/x.py", "import robust_plugin.recipes.data\n"),
    ("robust_plugin/x.py", "import numpy as np\n"),
    ("robust_plugin/x.py", "def f():\n    import tqdm\n"),
    ("robust_plugin/x.py", "import scipy.stats\n"),
    ("robust_plugin/x.py", "if True:\n    from scipy import stats\n"),
    ("robust_plugin/x.py", "import importlib\nimportlib.import_module('torchattacks')\n"),
    ("robust_plugin/x.py", "import importlib\nimportlib.import_module('scipy'.lower())\n"),
    ("robust_plugin/x.py", "__import__('torchvision')\n"),
    ("robust_plugin/x.py", "import adapters.autoattack\n"),
    ("robust_plugin/deep/x.py", "import yaml\n"),
    ("adapters/foolbox.py", "import torchattacks\n"),
    ("adapters/foolbox.py", "from robust_plugin.adapters import torchattacks\n"),
    ("adapters/foolbox.py", "from robust_plugin.adapters.torchattacks import X\n"),
    ("adapters/foolbox.py", "from robust_plugin.adapters.auto_lirpa_shims import f\n"),
    ("adapters/auto_lirpa_module.py", "from robust_plugin.adapters.auto_lirpa import f\n"),
    ("adapters/auto_lirpa_module.py", "import auto_LiRPA\n"),
    ("adapters/foolbox.py", "from .torchattacks import X\n"),
    ("adapters/foolbox.py", "from robust_plugin.recipes import data\n"),
    ("adapters/foolbox.py", "import tqdm\n"),
    ("adapters/new.py", "import torchattacks\n"),
    ("recipes/x.py", "import torchattacks\n"),
    ("recipes/x.py", "def f():\n    from auto_LiRPA import BoundedModule\n"),
    ("recipes/x.py", "import importlib\nimportlib.import_module('pyautoattack')\n"),
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
    assert len(found) >= 1 and all(path in line or Path(path).name in line for line in found)


def test_the_core_imports_nothing_but_torch_and_safetensors():
    """In a process of its own: neither scipy nor any adapter's library comes along."""
    code = (
        "import sys, robust_plugin, robust_plugin.checkpoint\n"
        f"names = {sorted(WRAPPED | {'scipy', 'torchvision', 'tyro', 'yaml', 'sklearn'})!r}\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
