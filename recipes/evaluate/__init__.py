"""Measure one network: attacks, proofs, checks for obfuscated gradients, tables.

``measure.py`` is the pass over the test points that all evaluations share. ``network.py`` is the
command ``evaluate`` for any network: ``prepared.py`` loads what it works on, and ``settings.py``
makes its settings from a finished run and refuses options without effect. ``plan.py`` says what an
evaluation does, and ``expected_time.py`` how long that takes. ``end_of_run.py`` evaluates a run at
its end, and ``unfinished.py`` keeps the finished parts of a running evaluation.
``attacks_by_name.py`` and ``certifiers.py`` build attacks and certifiers by name. ``page.py``
writes the HTML report of an evaluation; ``network_facts.py`` asks the network for what it shows,
and ``plots.py`` draws. ``before_after.py`` makes the table of a network before and after pruning.
At the end of a run, ``under_attack.py`` notes what the attack does to single points,
``security_curve.py`` measures accuracy at several radii, ``run_facts.py`` gathers what the page of
the run shows, and ``run_report.py`` writes this page.

Uses: training, data, models, config, pages, runtime.
Used by: papers, compare, dry, commands.
"""

from robust_plugin.recipes.evaluate.end_of_run import evaluate_run
from robust_plugin.recipes.evaluate.network import Evaluated, evaluate_network

__all__ = ["Evaluated", "evaluate_network", "evaluate_run"]
