"""The settings of every command, as dataclasses, and how they are read.

``schema.py`` has the settings of a recipe, ``objective.py`` those of its loss, ``evaluate.py``
and ``compare.py`` those of these commands. ``read.py`` builds them from YAML and options,
``presets.py`` finds presets and applies the suffixes of their names (``variants.yaml``),
``identity.py`` says which settings a trained weight depends on.

Not here: what the settings do (``training``, ``evaluate``, ``compare``).

Uses: runtime.
Used by: all other rooms of the recipes.
"""

from robust_plugin.recipes.config.compare import (
    CompareConfig,
)
from robust_plugin.recipes.config.evaluate import (
    EvaluateConfig,
)
from robust_plugin.recipes.config.objective import (
    ObjectiveConfig,
)
from robust_plugin.recipes.config.read import (
    as_plain,
    build,
    read_preset,
)
from robust_plugin.recipes.config.schema import (
    DataConfig,
    EvaluationConfig,
    RecipeConfig,
    StageConfig,
    ThreatConfig,
)

__all__ = [
    "CompareConfig",
    "EvaluateConfig",
    "ObjectiveConfig",
    "as_plain",
    "build",
    "read_preset",
    "DataConfig",
    "EvaluationConfig",
    "RecipeConfig",
    "StageConfig",
    "ThreatConfig",
]
