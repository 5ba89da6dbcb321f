"""The page of a run: report.html in its folder."""

from __future__ import annotations

from pathlib import Path

from robust_plugin.recipes.evaluate.run_facts import run_facts
from robust_plugin.recipes.pages.run_page import run_page
from robust_plugin.recipes.training.run import Run
from robust_plugin.runtime.files import write_text


def write_page(run: Run, *, method: str, command: str = "") -> Path:
    """Write report.html to the folder of a finished run, and return its path.

    The page is made from the files in the folder; of the networks, only the dense one is measured,
    and the latency of both, and only once (see ``compared``).

    Args:
        run: finished run.
        method: name of the recipe.
        command: command line of the run; empty for the one that would continue it.

    Raises:
        ValueError: if a file of the run is missing or damaged.
        ImportError: if jinja2 or matplotlib is not installed.
    """
    path = run.folder / "report.html"
    command = command or f"robust-plugin {method} --out {run.folder}"
    write_text(path, run_page(run_facts(run, method=method, command=command)))
    return path


def page_or_reason(run: Run, *, method: str, command: str = "") -> str:
    """Write the page of a finished run, and say in one sentence where it is.

    A fault in the page never makes a finished run fail: the sentence then says what went wrong.

    Args:
        run: finished run.
        method: name of the recipe.
        command: command line of the run; empty for the one that would continue it.
    """
    try:
        return f"the page of this run: {write_page(run, method=method, command=command)}"
    except Exception as error:  # whatever it is, the results of the run are already written
        return (
            f"report.html was not written ({type(error).__name__}: {error}); report.json has the "
            "results."
        )
