"""Settings of the papers' recipes on a tiny network, and what their runs leave."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from robust_plugin.masks.select import kept_count
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.papers.registry import RECIPES

SETTINGS: dict[str, Any] = {
    "model": "tiny_networks:net",
    "data": {"batch_size": 16},
    "threat": {"eps": "4/255"},
    "objective": {"steps": 2},
    "pretrain": {"epochs": 6, "lr": 0.1},
    "prune": {"epochs": 4, "lr": 0.5, "select": "last"},
    "finetune": {"epochs": 6, "lr": 0.05},
    "evaluation": {"steps": 3, "restarts": 1, "curve": 0},
    "density": 0.1,
    "device": "cpu",
    "threads": 1,
}

SIZES = {"0.weight": 3 * 8 * 9, "3.weight": 8 * 16 * 9, "6.weight": 64 * 4}

UNIFORM = {name: kept_count(n, 0.1) for name, n in SIZES.items()}


def settings(recipe: str, **more: Any) -> Any:
    return build(RECIPES[recipe].config, {**SETTINGS, **more}, where="test")


def kept(model: nn.Module) -> dict[str, int]:
    state = model.state_dict()
    return {name: int(state[name].count_nonzero()) for name in SIZES}


def stages(folder: Path) -> list[str]:
    lines = [json.loads(line)["stage"] for line in (folder / "log.jsonl").open()]
    return list(dict.fromkeys(lines))


def stage_state(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the model's part of a stage's last checkpoint."""
    tensors = load_file(folder / f"{name}.safetensors")
    return {k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")}


def dense_weight(state: dict[str, Tensor], layer: str) -> Tensor:
    return state[f"{layer}.weight"]
