"""Networks by name, and their weights from files.

Start with ``registry.py``, which builds a network from a name or from ``package.module:function``.
``networks.py`` has the papers' networks, and ``weights.py`` loads weights from a file.

Uses: runtime.
Used by: training, evaluate.
"""

from robust_plugin.recipes.models.registry import build_model
from robust_plugin.recipes.models.weights import load_weights

__all__ = ["build_model", "load_weights"]
