"""Evaluation: from a model and test points to a report.

Start with ``evaluation.py``: ``evaluate`` runs attacks and a certifier. ``arguments.py`` checks
the arguments of ``evaluate``, ``one_pass.py`` runs attacks and certifier on the points of the
loader, and ``rows.py`` collects the results of each.
``results.py`` has the results and computes accuracies from them, ``report.py`` prints, saves and
reads them, ``comparison.py`` compares those of two networks, ``curve.py`` has the security curve.
``sanity.py`` has the checks of the network that every evaluation makes, and
``running_statistics.py`` the one of BatchNorm. ``obfuscated_gradients.py`` has longer checks that a
user may run, ``obfuscation_verdict.py`` their results.

Not here: pages and plots (``recipes/pages``, ``recipes/evaluate``).

Uses: attacks, certificates, masks, threat, runtime, stats.
Used by: adapters, recipes.
"""

from robust_plugin.evaluation.comparison import (
    Comparison,
)
from robust_plugin.evaluation.curve import (
    SecurityCurve,
)
from robust_plugin.evaluation.evaluation import (
    evaluate,
)
from robust_plugin.evaluation.obfuscated_gradients import (
    obfuscation,
)
from robust_plugin.evaluation.obfuscation_verdict import (
    Obfuscation,
)
from robust_plugin.evaluation.report import (
    Report,
)
from robust_plugin.evaluation.results import (
    Results,
)

__all__ = [
    "Comparison",
    "SecurityCurve",
    "evaluate",
    "Obfuscation",
    "obfuscation",
    "Report",
    "Results",
]


def __dir__() -> list[str]:
    return sorted(__all__)
