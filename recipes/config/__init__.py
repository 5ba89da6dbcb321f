"""The settings of every command, as dataclasses, and how they are read.

Start with ``schema.py``, which has the settings of a recipe. ``objective.py`` has the settings of
its loss, ``evaluate.py`` and ``compare.py`` have those of the commands ``evaluate`` and
``compare``. ``read.py`` fills these dataclasses from YAML files, ``options.py`` from the command
line. ``option_list.py`` lists the options of a command. ``help.py`` formats the help of a command,
and ``help_tables.py`` has its texts.
``presets.py`` finds the YAML file of a preset and applies the suffixes of its name, which
``variants.yaml`` defines. ``resume_check.py`` says which settings the trained weights of a run
depend on.

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
