"""From a model and test points to a report.

Start with ``evaluation.py``: ``evaluate`` runs attacks and certifiers. ``arguments.py`` checks
what it is given, ``one_pass.py`` runs everything on the points of the loader, and ``rows.py``
collects the results of each attack and of the certifier.
``results.py`` has the results and the figures computed from them, ``report.py`` prints, saves and
reads them, ``curve.py`` is the security curve. ``sanity.py`` has the checks of the network that
every evaluation makes. ``obfuscated_gradients.py`` has the longer ones that a user may ask for,
``obfuscation_verdict.py`` their results.

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

__all__ = ["SecurityCurve", "evaluate", "Obfuscation", "obfuscation", "Report", "Results"]
