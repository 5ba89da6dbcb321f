"""Page templates: they escape values, refuse missing ones, and ship with the package."""

import base64
import sys
from pathlib import Path

import pytest

from robust_plugin.recipes.pages import html

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(html.__file__).parents[2]
NAMES = sorted(path.name for path in Path(html.__file__).parent.glob("*.j2"))
VALUES = {
    "title": "<b>",
    "conditions": "",
    "cards": [],
    "tables": [{"title": "", "head": ["method"], "rows": [["a & b"]], "best": []}],
    "colors": [],
    "reading": [],
    "interval": "",
    "measure": "",
    "terms": "",
    "densities": [],
    "security": None,
    "paired": "",
    "gains": [],
    "gain_colors": [],
    "kept": [],
    "curves": [],
    "best": None,
    "examples": None,
    "confusion": None,
    "settings": "",
    "command": "",
    "versions": {},
}


def test_a_template_escapes_its_values() -> None:
    page = html.load_template("comparison.html.j2").render(**VALUES)
    assert page.startswith("<!doctype html>\n") and page.endswith("</body></html>")
    assert page.count("&lt;b&gt;") == 2 and "<b>" not in page  # in the title and the heading
    assert "<td>a &amp; b</td>" in page
    style = page.partition("<style>\n")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style and "max-width: 40rem" in style


@pytest.mark.parametrize("missing", ["title", "measure", "settings", "versions"])
def test_a_missing_value_is_an_error_and_no_empty_place(missing: str) -> None:
    from jinja2 import UndefinedError

    values = {name: value for name, value in VALUES.items() if name != missing}
    with pytest.raises(UndefinedError, match=missing):
        html.load_template("comparison.html.j2").render(**values)


def test_without_jinja2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match="pip install jinja2"):
        html.load_template("comparison.html.j2")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml by tomllib")
@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree")
def test_the_package_ships_every_template() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    globs = settings["package-data"]["robust_plugin.recipes"]
    shipped = {path for glob in globs for path in (ROOT / "recipes").glob(glob)}
    assert {"comparison.html.j2", "evaluation.html.j2", "page.html.j2", "parts.html.j2"} <= set(
        NAMES
    )
    assert all(ROOT / "recipes" / "pages" / name in shipped for name in NAMES)


def test_a_data_url_holds_the_bytes_of_the_image() -> None:
    kind, _, text = html.data_url(b"\x89PNG\r\n\x00\xff").partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(text) == b"\x89PNG\r\n\x00\xff"
