"""The page "In your framework": its differences and its table of lines are those of the loops.

With the environment variable UPDATE_DOCS=1 they are written instead of compared.
"""

from __future__ import annotations

import copy
import difflib
import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
from loop_runs import NAMES, accuracy, due, imported, kept, load, network, run, source
from loop_variants import (
    PLACES,
    changed_lines,
    with_lightning,
    with_magnitude,
    with_nncf,
    with_torch,
    without_model_pruning,
)
from page_outputs import UPDATE
from torch.nn.utils import prune

IN_ONE_PROCESS = [name for name in NAMES if name != "ddp"]
PAGE = Path(__file__).resolve().parents[2] / "docs/frameworks.md"
TITLES = {
    "accelerated": "accelerate",
    "adjust_rate": "learning rate by hand, resume",
    "amp_ema": "mixed precision, accumulation, EMA",
    "awp": "adversarial weight perturbation",
    "best_state": "epochs, scheduler, best state",
    "closure": "trainer with closures",
    "ddp": "DistributedDataParallel",
    "ignite": "PyTorch-Ignite",
    "pgd_switch": "PGD, requires_grad switched",
    "sam": "SAM",
    "skorch": "skorch",
    "swa": "stochastic weight averaging",
    "timm_style": "timm's train.py: decay by name, EMA, resume",
    "two_optimizers": "Muon and AdamW",
}
# Lines above six: an average is a second network to finalize, and a loop that resumes loads the
# optimizer's state in the phase that it is of.
MORE = {"amp_ema": 1, "swa": 1, "adjust_rate": 1, "timm_style": 2}


# --- lines --------------------------------------------------------------------------------------


def test_changed_lines_counts_each_kind_of_change() -> None:
    assert changed_lines("a\nb\nc", "a\nb\nc\n\n") == 0
    assert changed_lines("a\nb\nc", "a\n    b\n    c") == 0
    assert changed_lines("a\nb\nc", "a\nx\nc") == 1
    assert changed_lines("a\nb\nc", "a\nx\ny\nc\nz") == 3
    assert changed_lines("a\nb\nc", "c") == 2


@pytest.mark.parametrize("name", NAMES)
def test_lines_of_the_whole_job(name: str) -> None:
    before, after = source(f"{name}_before"), source(f"{name}_after")
    assert "robust_plugin" not in before
    assert 4 <= changed_lines(before, after) <= 6 + MORE.get(name, 0)
    assert changed_lines(before, with_magnitude(name)) == 2 + len(PLACES[name].networks)


def table() -> str:
    """Return the table of lines in Markdown."""
    rows = ["loop|HARP or HYDRA|Magnitude|torch.nn.utils.prune|NNCF|Lightning's ModelPruning"]
    rows += ["---|" + "|".join(["---:"] * 5)]
    for name in sorted(NAMES, key=lambda name: TITLES[name].lower()):
        texts = [source(f"{name}_after"), with_magnitude(name), with_torch(name), with_nncf(name)]
        counts = [str(changed_lines(source(f"{name}_before"), text)) for text in texts]
        if name not in IN_ONE_PROCESS:
            counts[-1] = "–"  # was not run
        lightning = with_lightning(name)
        if lightning is None:
            counts.append("–")
        else:
            whole = changed_lines(source(f"{name}_before"), lightning)
            counts.append(f"{whole} / {changed_lines(without_model_pruning(lightning), lightning)}")
        rows.append("|".join([TITLES[name], *counts]))
    return "".join(f"| {row.replace('|', ' | ')} |\n" for row in rows)


def difference(name: str) -> str:
    """Return what the pruner changes in a loop; a moved line is unchanged."""
    before, after = (source(f"{name}_{when}").splitlines() for when in ("before", "after"))
    old, new = ([line.strip() for line in lines] for lines in (before, after))
    hunks = []
    for group in difflib.SequenceMatcher(None, old, new, False).get_grouped_opcodes(2):
        hunk = ""
        for tag, i1, i2, j1, j2 in group:
            removed = [] if tag == "equal" else [f"-{line}" for line in before[i1:i2]]
            sign = " " if tag == "equal" else "+"
            for line in [*removed, *(sign + line for line in after[j1:j2])]:
                hunk += line.rstrip() + "\n"
        hunks.append(hunk.strip("\n") + "\n")
    return "@@\n".join(hunks)


def test_differences_and_table_on_the_page() -> None:
    page = PAGE.read_text()

    def shown(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n```diff\n{difference(match[2])}```\n"

    found = r"(<!-- loop: (\w+) -->)\n(?:\n```diff\n(?:.*\n)*?```\n)?"
    now, count = re.subn(found, shown, page)
    now, tables = re.subn(
        r"(<!-- table of lines -->)\n(?:\n(?:\|.*\n)+)?",
        lambda match: f"{match[1]}\n\n{table()}",
        now,
    )
    assert (count, tables) == (len(NAMES), 1)
    if UPDATE and now != page:
        PAGE.write_text(now)
    assert now == PAGE.read_text(), "UPDATE_DOCS=1 writes the page's differences and table anew"


# --- the other tools ----------------------------------------------------------------------------


def check(name: str, text: str, folder: Path) -> None:
    """Run a loop with another tool; it ends with 10 % of the weights, under plain names."""
    file = folder / f"{name}.py"
    file.write_text(text)
    model = run(name, load(f"{name}_before"), network(), folder)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(name, imported(file), model, folder)
    for trained in found:
        fresh = network()
        fresh.load_state_dict(trained.state_dict(), strict=True)
        assert abs(kept(fresh) - due(fresh)) <= 4  # they round in other ways
        assert accuracy(fresh) > 0.8


def test_torch_prune_and_deep_copies() -> None:
    """What the page says of torch.nn.utils.prune."""
    for grad in (False, True):
        model = network()
        with torch.set_grad_enabled(grad):
            prune.l1_unstructured(model.hidden, "weight", amount=0.9)
        assert "hidden.weight_orig" in model.state_dict()
        if grad:
            with pytest.raises(RuntimeError, match="deepcopy protocol"):
                copy.deepcopy(model)
        else:
            copy.deepcopy(model)


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_torch_prune(name: str, tmp_path: Path) -> None:
    check(name, with_torch(name), tmp_path)


@pytest.mark.bench  # NNCF is in none of the extras
@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_nncf(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    check(name, with_nncf(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accelerated", "best_state", "pgd_switch"])
def test_lightning_model_pruning(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    monkeypatch.chdir(tmp_path)  # it writes its checkpoints to the current folder
    check(name, str(with_lightning(name)), tmp_path)
