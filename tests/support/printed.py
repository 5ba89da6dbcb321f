"""Reports and errors that a command has left."""

from pathlib import Path

import pytest

from robust_plugin.evaluation.report import Report


def saved(out: Path) -> Report:
    """The report in a JSON file."""
    return Report.from_json(out.read_text())


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed to standard error, on one line."""
    return " ".join(capsys.readouterr().err.split())
