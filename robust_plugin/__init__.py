"""Adversarially robust pruning for models and training loops that already exist.

>>> import torch
>>> from robust_plugin import HydraPruner, ThreatModel, adversarial, pgd
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
>>> pruner = HydraPruner(model, density=0.1)
>>> pruner.kept
64
"""

from robust_plugin.attacks import PGD, pgd
from robust_plugin.bounds import IBP, Bounds, ibp_margins
from robust_plugin.budget import Budget
from robust_plugin.carrying import carry_optimizer
from robust_plugin.certified import certified, mixtrain
from robust_plugin.curve import SecurityCurve
from robust_plugin.dense import dense_state_dict, finalize, load_dense_state_dict
from robust_plugin.evaluation import evaluate
from robust_plugin.groups import Group, Member
from robust_plugin.guard import Attack, guarded
from robust_plugin.minimum_norm import MinimumNorm
from robust_plugin.noise import gaussian, smoothadv
from robust_plugin.normalization import Normalize
from robust_plugin.objectives import (
    Free,
    Objective,
    adversarial,
    benign,
    mart,
    replay,
    stability,
    trades,
)
from robust_plugin.presets import HarpPruner, HydraPruner, MagnitudePruner
from robust_plugin.prunable import weight_groups
from robust_plugin.pruner import Pruner
from robust_plugin.ramp import Ramp
from robust_plugin.report import Report
from robust_plugin.rows import Certifier
from robust_plugin.scores import scaled_magnitude, snip_scores
from robust_plugin.smoothing import Certificates, Smoothed
from robust_plugin.sparsity import Sparsity, sparsity
from robust_plugin.statistics import mcnemar, wilson_interval
from robust_plugin.threat import ThreatModel
from robust_plugin.verification import Verification, verify
from robust_plugin.verifier import Verifier

__all__ = [
    "IBP",
    "PGD",
    "Attack",
    "Bounds",
    "Budget",
    "Certificates",
    "Certifier",
    "Free",
    "Group",
    "HarpPruner",
    "HydraPruner",
    "MagnitudePruner",
    "Member",
    "MinimumNorm",
    "Normalize",
    "Objective",
    "Pruner",
    "Ramp",
    "Report",
    "Smoothed",
    "SecurityCurve",
    "Sparsity",
    "ThreatModel",
    "Verification",
    "Verifier",
    "adversarial",
    "benign",
    "certified",
    "carry_optimizer",
    "dense_state_dict",
    "evaluate",
    "finalize",
    "gaussian",
    "guarded",
    "ibp_margins",
    "load_dense_state_dict",
    "mart",
    "mcnemar",
    "mixtrain",
    "pgd",
    "replay",
    "scaled_magnitude",
    "smoothadv",
    "snip_scores",
    "sparsity",
    "stability",
    "trades",
    "verify",
    "weight_groups",
    "wilson_interval",
]
__version__ = "0.1.0"
