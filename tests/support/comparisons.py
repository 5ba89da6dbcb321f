"""Settings of a comparison in a second: a tiny network, four rows."""

from typing import Any

from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.read import build

BASE: dict[str, Any] = {
    "model": "tiny_networks:net",
    "data": {"batch_size": 16},
    "threat": {"eps": "2/255"},
    "objective": {"steps": 2},
    "pretrain": {"epochs": 2, "lr": 0.1},
    "prune": {"epochs": 1, "lr": 0.5, "select": "last"},
    "finetune": {"epochs": 3},
    "evaluation": {"steps": 2, "restarts": 1, "autoattack": 0, "curve": 0},
    "device": "cpu",
    "threads": 1,
}


ROWS = {
    "LWM uniform": {"recipe": "magnitude"},
    "LWM ERK": {"recipe": "magnitude", "rates": "erk"},
    "HYDRA": {"recipe": "hydra"},
    "HARP": {"recipe": "harp", "prune": {"lr": 0.3}},
}


def comparison(**more: Any) -> CompareConfig:
    content = {"base": BASE, "rows": ROWS, "densities": [0.3], "lrs": [0.05], **more}
    return build(CompareConfig, content, where="test")
