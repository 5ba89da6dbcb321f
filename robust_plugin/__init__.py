"""Adversarially robust pruning for models and training loops that already exist.

Every sub-package (a "room") is about one subject. The docstring of its ``__init__.py`` says what is
in it and which file to open first. The names below are public: their import path stays the same.

The example attaches a pruner that keeps a tenth of 640 weights.

>>> import torch
>>> from robust_plugin import HydraPruner, ThreatModel, adversarial, pgd
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
>>> pruner = HydraPruner(model, density=0.1)
>>> pruner.kept
64
"""

from robust_plugin.attacks import (
    PGD,
    Attack,
    MinimumNorm,
    guarded,
    pgd,
)
from robust_plugin.budget import (
    Budget,
    Cubic,
    Geometric,
    Rounds,
)
from robust_plugin.certificates import (
    IBP,
    Bounds,
    Certificates,
    Certifier,
    Smoothed,
    Verification,
    Verifier,
    ibp_margins,
    verify,
)
from robust_plugin.channels import (
    carry_optimizer,
)
from robust_plugin.evaluation import (
    Comparison,
    Report,
    SecurityCurve,
    evaluate,
    obfuscation,
)
from robust_plugin.export import (
    load_compressed,
    save_compressed,
    semi_structured,
    sparse,
)
from robust_plugin.masks import (
    Group,
    Member,
    dense_state_dict,
    finalize,
    load_dense_state_dict,
    weight_groups,
)
from robust_plugin.objectives import (
    Free,
    Objective,
    Ramp,
    adversarial,
    benign,
    certified,
    distilled,
    gaussian,
    mart,
    mixtrain,
    perturbed,
    replay,
    smoothadv,
    stability,
    trades,
)
from robust_plugin.pruning import (
    GradualPruner,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    Pruner,
    Sparsity,
    recompute_statistics,
    scaled_magnitude,
    snip_scores,
    sparsity,
)
from robust_plugin.pruning import checkpoint as checkpoint
from robust_plugin.runtime import (
    Progress,
)
from robust_plugin.stats import (
    mcnemar,
    wilson_interval,
)
from robust_plugin.threat import (
    Normalize,
    ThreatModel,
)
from robust_plugin.version import __version__ as __version__

__all__ = [
    "Attack",
    "Bounds",
    "Budget",
    "Certificates",
    "Certifier",
    "Comparison",
    "Cubic",
    "Free",
    "Geometric",
    "GradualPruner",
    "Group",
    "HarpPruner",
    "HydraPruner",
    "IBP",
    "MagnitudePruner",
    "Member",
    "MinimumNorm",
    "Normalize",
    "Objective",
    "PGD",
    "Progress",
    "Pruner",
    "Ramp",
    "Report",
    "Rounds",
    "SecurityCurve",
    "Smoothed",
    "Sparsity",
    "ThreatModel",
    "Verification",
    "Verifier",
    "adversarial",
    "benign",
    "carry_optimizer",
    "certified",
    "dense_state_dict",
    "distilled",
    "evaluate",
    "finalize",
    "gaussian",
    "guarded",
    "ibp_margins",
    "load_compressed",
    "load_dense_state_dict",
    "mart",
    "mcnemar",
    "mixtrain",
    "obfuscation",
    "perturbed",
    "pgd",
    "recompute_statistics",
    "replay",
    "save_compressed",
    "scaled_magnitude",
    "semi_structured",
    "smoothadv",
    "snip_scores",
    "sparse",
    "sparsity",
    "stability",
    "trades",
    "verify",
    "weight_groups",
    "wilson_interval",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "checkpoint"])
