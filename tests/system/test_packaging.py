"""The wheel holds every module, preset, template and table, at the place it is imported from."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "robust_plugin": "robust_plugin",
    "adapters": "robust_plugin/adapters",
    "recipes": "robust_plugin/recipes",
}


def shipped(root: Path) -> set[str]:
    """Files of the tree that users need, by their place in the wheel."""
    return {
        f"{place}/{path.relative_to(root / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def copy_of_the_tree(source: Path) -> None:
    """A copy, because a build leaves folders in its source tree."""
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy_of_the_tree(source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == shipped(ROOT)


BUILD_EDITABLE = """
from setuptools import build_meta
build_meta.build_editable("..", {"editable_mode": "strict"})
"""


@pytest.mark.slow
def test_a_strict_editable_install_shows_types(tmp_path: Path) -> None:
    """Type checkers run no code: they see a package only if it lies whole in a folder of a .pth."""
    source = tmp_path / "source"
    copy_of_the_tree(source)
    command = [sys.executable, "-c", BUILD_EDITABLE]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        (pth,) = (name for name in content.namelist() if name.endswith(".pth"))
        folder = Path(content.read(pth).decode().strip())
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == shipped(ROOT) and "robust_plugin/py.typed" in found
