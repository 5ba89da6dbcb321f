"""The notebooks of the documentation: each is run, and its outputs agree with those it keeps.

With the environment variable UPDATE_DOCS=1 the outputs are written into the notebooks instead.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from page_outputs import UPDATE, same_words

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs/notebooks").glob("*.ipynb"))


def shape(output: dict[str, Any]) -> tuple[str, ...]:
    """What must not differ between two runs: the kind of an output, and the words of its text."""
    if output["output_type"] == "stream":
        return ("stream", output["name"], *same_words(output["text"]))
    if "image/png" in output["data"]:
        return ("picture",)
    return (*sorted(output["data"]), *same_words(output["data"]["text/plain"]))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_keeps_its_outputs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = nbformat.read(path, as_version=4)
    new = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        new,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    for cell in new.cells:  # warnings of other libraries name files of this machine
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    if UPDATE:
        new.metadata = kept.metadata
        nbformat.write(new, path)
        return
    for before, now in zip(kept.cells, new.cells, strict=True):
        if now.cell_type == "code":
            assert before.execution_count == now.execution_count
            shapes = [[shape(each) for each in cell.outputs] for cell in (before, now)]
            assert shapes[0] == shapes[1], now.source


def test_there_are_notebooks_and_they_show_pictures_and_tables():
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
        kinds = {kind for each in outputs for kind in each.get("data", {})}
        assert {"image/png", "text/html", "text/plain"} <= kinds
        assert not [each for each in outputs if each.get("name") == "stderr"]
        assert path.stat().st_size < 400_000
        assert not re.search(r"/(home|tmp|work)/", path.read_text())
