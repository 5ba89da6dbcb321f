"""From a model and test points to a report.

Start with ``evaluation.py``: ``evaluate`` runs attacks and certifiers. ``rows.py`` is one line of
its report, ``report.py`` the report, ``curve.py`` the security curve, ``sanity.py`` the checks of
the network that every evaluation makes, ``obfuscated_gradients.py`` the longer ones on demand.

Not here: pages and plots (``recipes/pages``, ``recipes/evaluate``).

Uses: attacks, certificates, masks, threat, runtime, stats.
Used by: adapters, recipes.
"""

from robust_plugin.evaluation.curve import (
    SecurityCurve,
)
from robust_plugin.evaluation.evaluation import (
    evaluate,
)
from robust_plugin.evaluation.obfuscated_gradients import (
    Obfuscation,
    obfuscation,
)
from robust_plugin.evaluation.report import (
    Report,
)

__all__ = ["SecurityCurve", "evaluate", "Obfuscation", "obfuscation", "Report"]
