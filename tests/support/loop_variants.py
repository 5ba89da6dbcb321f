"""The loops of tests/system/loops with other pruners, and how many lines differ.

Most variants prune by magnitude to 10 % and end with plain weights: some lines where the loop
starts, and some before it returns. Two change the loops that have a pruner: their density falls
while the weights train.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from loop_runs import LOOPS, source


@dataclass(frozen=True)
class Places:
    """Where the lines go in one loop.

    Attributes:
        start: beginning of the line before which the network is pruned.
        end: beginning of the line before which it becomes plain.
        networks: the networks that the loop gives.
    """

    start: str
    end: str
    networks: tuple[str, ...] = ("model",)


PLACES = {
    "accelerated": Places("    optimizer = ", "    return"),
    "adjust_rate": Places("    first = 0", "    return"),
    "amp_ema": Places("    optimizer = ", "    return model, ema", ("model", "ema.module")),
    "awp": Places("    awp = ", "    return model"),
    "best_state": Places("    optimizer = ", "    return model"),
    "closure": Places("        self.optimizer = ", "        return self.losses", ("self.model",)),
    "ddp": Places("    optimizer = ", "    torch.save"),
    "ignite": Places("    evaluator = ", "    return model"),
    "pgd_switch": Places("    optimizer = ", "    return model"),
    "sam": Places("    optimizer = ", "    return model"),
    "skorch": Places("    net = ", "    return net"),
    "swa": Places("    optimizer = ", "    return averaged", ("averaged.module",)),
    "timm_style": Places("    first, epochs = ", "    return model, ema", ("model", "ema.module")),
    "two_optimizers": Places("    matrices = ", "    return model"),
}
COPIES = {"amp_ema", "awp", "swa", "timm_style"}  # loops that copy the network
_LAYERS = "isinstance(m, torch.nn.Conv2d | torch.nn.Linear)"


def with_magnitude(name: str) -> str:
    """Return a loop with ``MagnitudePruner``."""
    return _inserted(
        name,
        "from robust_plugin import MagnitudePruner, finalize",
        ["MagnitudePruner(model, density=0.1)"],
        [f"finalize({network})" for network in PLACES[name].networks],
    )


def with_gradual(name: str) -> str:
    """Return a loop with ``GradualPruner``, which has a phase more."""
    lengths = r'{"shrink": \1, "prune": \1, "finetune": \2}'
    return _shrinking(name, "GradualPruner", "", lengths)


def with_gradual_magnitude(name: str) -> str:
    """Return a loop with ``MagnitudePruner`` and a schedule, whose phases train the same."""
    lengths = r'{"shrink": \1, "finetune": \2}'
    return _shrinking(name, "MagnitudePruner", ', schedule="geometric"', lengths)


def _shrinking(name: str, kind: str, options: str, lengths: str) -> str:
    text, found = re.subn(r"(?:Harp|Hydra)Pruner", kind, source(f"{name}_after"))
    assert found == 2  # the import, and the call
    text, found = re.subn(r"density=0\.1", rf"density=0.1{options}", text)
    assert found == 1
    text, found = re.subn(r'{"prune": (\w+), "finetune": (\w+)}', lengths, text)
    assert found == 1
    return text


def with_torch(name: str) -> str:
    """Return a loop with ``torch.nn.utils.prune``."""
    places = PLACES[name]
    start = [
        f"layers = [m for m in model.modules() if {_LAYERS}]",
        "for layer in layers:",
        '    prune.l1_unstructured(layer, "weight", amount=0.9)',
    ]
    if name in COPIES:  # else deepcopy fails
        start[2:] = ["    with torch.no_grad():", f"    {start[2]}"]
    end = ["for layer in layers:", '    prune.remove(layer, "weight")']
    if places.networks != ("model",):
        every = ", ".join(f"*{network}.modules()" for network in places.networks)
        end = [f"for layer in [{every}]:", '    if hasattr(layer, "weight_mask"):', f"    {end[1]}"]
    return _inserted(name, "from torch.nn.utils import prune", start, end)


def with_nncf(name: str) -> str:
    """Return a loop with NNCF 3.4."""
    strip = "nncf.strip({}, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)"
    start = [
        "mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL",
        "model = nncf.prune(model, mode, ratio=0.9, examples_inputs=torch.zeros(1, 1, 8, 8))",
    ]
    end = [strip.format(network) for network in PLACES[name].networks]
    return _inserted(name, "import nncf", start, end)


def _inserted(name: str, imported: str, start: list[str], end: list[str]) -> str:
    lines = source(f"{name}_before").splitlines()
    places = PLACES[name]
    for before, new in ((places.end, end), (places.start, start)):
        at = max(i for i, line in enumerate(lines) if line.startswith(before))
        indent = " " * (len(before) - len(before.lstrip()))
        lines[at:at] = [indent + line for line in new]
    last = max(i for i, line in enumerate(lines) if line.startswith(("import ", "from ")))
    lines[last + 1 : last + 1] = [imported]
    assert max(map(len, lines)) <= 100
    return "\n".join(lines) + "\n"


def with_lightning(name: str) -> str | None:
    """Return a loop that was rewritten for Lightning, with its ModelPruning; None if none was."""
    file = LOOPS / f"{name}_lightning.py"
    return file.read_text() if file.exists() else None


def without_model_pruning(text: str) -> str:
    """Return a loop of Lightning without the callback ModelPruning."""
    for found in (
        r"^    (pairs|pruning) = .*\n",
        r"^from torch import nn\n",
        r"^from \S+ import ModelPruning\n",
        r", ModelPruning$",
        r"callbacks=\[pruning\]",
        r"pruning, ",
    ):
        text = re.sub(found, "", text, flags=re.MULTILINE)
    return text.replace("epochs + 1", "epochs")


def changed_lines(before: str, after: str) -> int:
    """Lines that differ, added, removed or changed; blank ones and indentation do not count."""
    old, new = (
        [line.strip() for line in text.splitlines() if line.strip()] for text in (before, after)
    )
    return sum(
        max(i2 - i1, j2 - j1)
        for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, False).get_opcodes()
        if tag != "equal"
    )
