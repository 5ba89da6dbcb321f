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


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    # A copy: a build leaves folders in its source tree.
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == shipped(ROOT)
