"""Training objectives, that is losses: an objective is ``objective(model, x, y) -> scalar``.

``by_attack.py`` has adversarial training, TRADES, MART and free training, ``by_bounds.py``
certified training and MixTrain, ``by_noise.py`` training for randomized smoothing, and ``ramp.py``
the schedules of eps and of the weights of loss terms. ``adversarial_inputs.py`` keeps the inputs of
an attack for a second evaluation. Two files add to any objective:
``by_distillation.py`` a term that learns from a teacher, and ``by_perturbation.py`` the worst
weights or scores nearby (AWP, S2AP).

Not here: the attacks and bounds themselves (``attacks``, ``certificates``).

Uses: attacks, certificates, masks, threat, runtime.
Used by: recipes.
"""

from robust_plugin.objectives.by_attack import (
    Free,
    Objective,
    adversarial,
    benign,
    mart,
    replay,
    trades,
)
from robust_plugin.objectives.by_bounds import (
    certified,
    mixtrain,
)
from robust_plugin.objectives.by_distillation import (
    distilled,
)
from robust_plugin.objectives.by_noise import (
    gaussian,
    smoothadv,
    stability,
)
from robust_plugin.objectives.by_perturbation import (
    perturbed,
)
from robust_plugin.objectives.ramp import (
    Ramp,
)

__all__ = [
    "Free",
    "Objective",
    "adversarial",
    "benign",
    "mart",
    "replay",
    "trades",
    "certified",
    "distilled",
    "mixtrain",
    "perturbed",
    "gaussian",
    "smoothadv",
    "stability",
    "Ramp",
]


def __dir__() -> list[str]:
    return sorted(__all__)
