"""The documentation site: it builds without a warning, and every page fits a phone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import check_page

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="sphinx is missing"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site once; return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "trees"), str(ROOT / "docs"), str(folder / "html")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_of_the_folder_is_built(site):
    sources = [p for p in (ROOT / "docs").rglob("*") if p.suffix in (".md", ".ipynb")]
    assert len(sources) > 40
    for path in sources:
        assert (site / path.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), path


# What Sphinx writes by itself, without text of ours.
GENERATED = {"genindex.html", "py-modindex.html", "search.html"}
# Pages with all kinds of content; here the contrast of every text is measured too.
LOOKED_AT = {"index.html", "glossary.html", "tutorial.html", "notebooks/evaluate_and_prove.html"}


def test_every_page_fits_a_phone_and_has_its_pictures(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    pages = {name for name in pages if not name.startswith("_")} - GENERATED
    assert len(pages) > 40 and pages >= LOOKED_AT
    for name in sorted(pages):
        check_page(site / name, contrast=name in LOOKED_AT, smallest=5)
