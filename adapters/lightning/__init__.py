"""Pruning inside one fit of Lightning's Trainer.

Start with ``callback.py``: ``PruningCallback`` attaches a pruner, runs its phases and finalizes.
``phase_change.py`` is what Lightning makes anew when a phase begins: DDP, optimizers, learning rate
schedules, early stopping, the best checkpoint.
"""

try:
    import lightning  # noqa: F401
except ImportError as error:
    raise ImportError("PruningCallback needs Lightning; pip install lightning") from error

from robust_plugin.adapters.lightning.callback import (
    PruningCallback,
)

__all__ = ["PruningCallback"]


def __dir__() -> list[str]:
    return sorted(__all__)
