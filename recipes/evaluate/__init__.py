"""Measure one network: attacks, proofs, checks for obfuscated gradients, tables.

``measure.py`` is the pass over the test points that all evaluations share. ``network.py`` is the
command ``evaluate`` for any network, and ``settings.py`` makes its settings from a finished run
and refuses options without effect. ``end_of_run.py`` evaluates a run at its end.
``attacks_by_name.py`` and ``certifiers.py`` build attacks and certifiers by name, ``page.py`` the
HTML report, and ``before_after.py`` the table of a network before and after channels are removed.

Uses: training, data, models, config, pages, runtime.
Used by: papers, cli.
"""

from robust_plugin.recipes.evaluate.end_of_run import evaluate_run
from robust_plugin.recipes.evaluate.network import Evaluated, evaluate_network

__all__ = ["Evaluated", "evaluate_network", "evaluate_run"]
