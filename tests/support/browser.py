"""HTML pages in a real browser: what is wrong with a page, at two widths, light and dark.

``check_page`` is for the pages of the recipes and for the built documentation. It drives the
Chromium of the system, one for all tests of a process.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# A function in JavaScript that returns sentences about what is wrong with a page.
FAULTS = Path(__file__).with_name("page_faults.js").read_text()

WIDTHS = (1200, 390)
SCHEMES = ("light", "dark")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

# Playwright leaves an event loop running in the thread that uses it, which would disturb tests that
# need one of their own. So the browser lives in this thread. It ends with the process.
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="browser")


def chromium() -> str | None:
    """The path of the system's Chromium or Chrome; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def need_chromium() -> str:
    """The path of the browser; without one the test is skipped or, on a server of CI, fails."""
    path = chromium()
    if path is None:
        reason = "pages are checked in a browser, and none is installed: apt-get install chromium"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return path


def check_page(path: Path, *, contrast: bool = True, smallest: float = 6.5) -> None:
    """Assert that a page has no fault at 1,200 and 390 pixels, light and dark.

    Args:
        path: the HTML file.
        contrast: whether text needs a contrast of 4.5 with what is behind it (large text: 3). If
            not, the page is looked at in light colours alone.
        smallest: least size of the text of pictures, in pixels.
    """
    faults = faults_of(path, contrast=contrast, smallest=smallest)
    assert not faults, "\n".join([f"{path}:", *faults])


def faults_of(path: Path, *, contrast: bool = True, smallest: float = 6.5) -> list[str]:
    """What is wrong with a page: errors, failed requests, overflow, pictures, contrast."""
    options = {"contrast": contrast, "smallest": smallest}
    return _THREAD.submit(_faults, need_chromium(), path.resolve().as_uri(), options).result()


def screenshot(path: Path, image: Path, *, width: int = 1200, scheme: str = "light") -> None:
    """Write a picture of a whole page to a PNG file, to look at."""
    _THREAD.submit(
        _screenshot, need_chromium(), path.resolve().as_uri(), image, width, scheme
    ).result()


@cache
def _browser(executable: str) -> Any:
    from playwright.sync_api import sync_playwright

    return sync_playwright().start().chromium.launch(executable_path=executable, args=list(OPTIONS))


def _faults(executable: str, url: str, options: dict[str, Any]) -> list[str]:
    page = _browser(executable).new_page()
    said: list[str] = []
    page.on("console", lambda m: said.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: said.append(f"script: {error}"))
    page.on("requestfailed", lambda request: said.append(f"request failed: {request.url[:80]}"))
    page.goto(url)
    found = list(said)
    # Dark colours move nothing: they matter where contrast is measured.
    schemes = SCHEMES if options["contrast"] else SCHEMES[:1]
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            found += [f"{width} {scheme}: {fault}" for fault in page.evaluate(FAULTS, options)]
    page.close()
    return found


def _screenshot(executable: str, url: str, image: Path, width: int, scheme: str) -> None:
    page = _browser(executable).new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page.goto(url)
    page.screenshot(path=image, full_page=True)
    page.close()
